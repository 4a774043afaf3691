package status

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	daemonv1 "github.com/musterhq/muster/api/muster/daemon/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/shards"
)

// Judge says what the findings mean.
func Judge(f Findings) *musterv1.GetClusterStatusResponse {
	m := &musterv1.GetClusterStatusResponse{Store: f.Store.message()}
	problem := func(format string, a ...any) { m.Problems = append(m.Problems, fmt.Sprintf(format, a...)) }
	switch {
	case errors.Is(f.Store.Err, kv.ErrLimited):
		problem("the store refuses requests; what is shown is what was known last: %v", f.Store.Err)
	case f.Store.Err != nil:
		problem("the store does not answer; what is shown is what was known last: %v", f.Store.Err)
	case f.Store.Leader == "":
		problem("the store has no leader that is known")
	}
	for _, s := range Subsystems() {
		c := f.Ownership[s.Name]
		none := unowned(s, c)
		m.Subsystems = append(m.Subsystems, &musterv1.SubsystemStatus{
			Subsystem: s.Name, Daemon: s.Daemon, Instances: uint32(len(c.Members)), Shards: uint32(s.Shards), Unowned: none,
		})
		switch {
		case f.Store.Err != nil:
			// Locks may have changed hands since.
		case len(c.Members) == 0:
			problem("no %s takes part", s.Daemon)
		case len(none) > 0:
			problem("no replica holds %s of the %s", ranges(none), s.Name)
		}
		for _, d := range f.instances(s, c) {
			m.Daemons = append(m.Daemons, d)
			switch d.Health {
			case musterv1.DaemonInstance_UNHEALTHY, musterv1.DaemonInstance_UNREACHABLE, musterv1.DaemonInstance_DEAD:
				problem("%s %s at %s is %s: %s", d.Daemon, d.Instance, d.Address, strings.ToLower(d.Health.String()), d.Reason)
			}
		}
	}
	m.Healthy = len(m.Problems) == 0
	return m
}

func (s Store) message() *musterv1.StoreStatus {
	m := &musterv1.StoreStatus{
		Kind: s.Kind, Reachable: s.Err == nil || errors.Is(s.Err, kv.ErrLimited), Leader: s.Leader, Servers: s.Servers,
		Latency: durationpb.New(s.Latency), StaleFor: durationpb.New(s.StaleFor),
	}
	if s.Err != nil {
		m.Error = s.Err.Error()
	}
	return m
}

// instances returns those of one daemon: its members, and the others in the
// catalog.
func (f Findings) instances(s Subsystem, c shards.Ownership) []*musterv1.DaemonInstance {
	var all []*musterv1.DaemonInstance
	known := map[string]bool{}
	for _, member := range c.Members {
		known[member.Instance] = true
		d := &musterv1.DaemonInstance{
			Daemon: s.Daemon, Instance: member.Instance, Address: member.Address, Version: member.Version,
			StartedAt: timestamppb.New(member.Started),
		}
		f.judge(d)
		all = append(all, d)
	}
	for _, p := range f.Processes[s.Daemon] {
		if instance := p.Meta["instance"]; !known[instance] {
			all = append(all, f.notMember(s, instance, p))
		}
	}
	for _, d := range all {
		d.Shards = holdings(s, c, d.Instance)
	}
	slices.SortFunc(all, func(a, b *musterv1.DaemonInstance) int { return strings.Compare(a.Instance, b.Instance) })
	return all
}

// notMember returns a process that is in the catalog and is not a member.
func (f Findings) notMember(s Subsystem, instance string, p kv.Process) *musterv1.DaemonInstance {
	d := &musterv1.DaemonInstance{Daemon: s.Daemon, Instance: instance, Address: p.Address, Version: p.Meta["version"]}
	if !p.Alive {
		d.Health, d.Reason = musterv1.DaemonInstance_DEAD, p.Reason
		return d
	}
	f.judge(d)
	if d.Health == musterv1.DaemonInstance_HEALTHY {
		d.Health, d.Reason = musterv1.DaemonInstance_CHANGING, "it is about to join, or to leave"
	}
	return d
}

func holdings(s Subsystem, c shards.Ownership, instance string) []*musterv1.ShardHolding {
	var held []*musterv1.ShardHolding
	for shard := range s.Shards {
		if h, ok := c.Leases[shard]; ok && h.Instance == instance {
			m := &musterv1.ShardHolding{Subsystem: s.Name, Shard: uint32(shard)}
			if !h.Since.IsZero() {
				m.Since = timestamppb.New(h.Since)
			}
			held = append(held, m)
		}
	}
	return held
}

// judge fills in what the instance reports, or that it does not.
func (f Findings) judge(d *musterv1.DaemonInstance) {
	r, asked := f.Reports[d.Instance]
	switch {
	case status.Code(r.Err) == codes.Unimplemented:
		// Another version, in the midst of an upgrade. It answers, and its locks are
		// held.
		d.Health, d.Reason = musterv1.DaemonInstance_HEALTHY, "its version does not report how far its view is"
	case !asked || r.Err != nil:
		d.Health, d.Reason = musterv1.DaemonInstance_UNREACHABLE, "it was not asked"
		if r.Err != nil {
			d.Reason = "it does not answer: " + status.Convert(r.Err).Message()
		}
	case r.Instance != d.Instance:
		d.Health, d.Reason = musterv1.DaemonInstance_UNREACHABLE, fmt.Sprintf("%s %s answers at its address", r.Daemon, r.Instance)
	case r.Problem != "":
		d.Health, d.Reason = musterv1.DaemonInstance_UNHEALTHY, r.Problem
	default:
		d.Health = musterv1.DaemonInstance_HEALTHY
	}
	if r.ReportResponse != nil && r.Instance == d.Instance {
		d.StartedAt = r.StartedAt
		d.View = f.lag(r.View)
	}
}

// lag holds what an instance has applied against what there was to apply.
func (f Findings) lag(v *daemonv1.View) *musterv1.ViewLag {
	if v == nil {
		return nil
	}
	m := &musterv1.ViewLag{Loaded: v.Loaded, Time: v.Lag}
	if f.Newest == nil {
		return m
	}
	var missing uint64
	for _, t := range v.Tables {
		for i, newest := range f.Newest[t.Table] {
			if i < len(t.Sequences) && newest > t.Sequences[i] {
				missing += newest - t.Sequences[i]
			}
		}
	}
	m.Commits = &missing
	return m
}

// ranges names shards: "shards 0-3, 7".
func ranges(numbers []uint32) string {
	var b strings.Builder
	b.WriteString("shard")
	if len(numbers) != 1 {
		b.WriteString("s")
	}
	for i := 0; i < len(numbers); {
		last := i
		for last+1 < len(numbers) && numbers[last+1] == numbers[last]+1 {
			last++
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(" " + strconv.FormatUint(uint64(numbers[i]), 10))
		if last > i {
			b.WriteString("-" + strconv.FormatUint(uint64(numbers[last]), 10))
		}
		i = last + 1
	}
	return b.String()
}
