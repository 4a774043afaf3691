package status_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	daemonv1 "github.com/musterhq/muster/api/muster/daemon/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	clusterstatus "github.com/musterhq/muster/apid/status"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/shards"
)

// well is what is found of a cluster with one instance of each daemon, all well.
// Instances are called after their daemons.
func well() clusterstatus.Findings {
	f := clusterstatus.Findings{
		Store:     clusterstatus.Store{Description: kv.Description{Kind: "consul", Leader: "a:1", Servers: []string{"a:1"}}, Latency: time.Millisecond},
		Ownership: map[string]shards.Ownership{},
		Processes: map[string][]kv.Process{},
		Newest:    map[string][]uint64{"tasks": {5, 0, 7}},
		Reports:   map[string]clusterstatus.Report{},
	}
	for _, s := range clusterstatus.Subsystems() {
		m := shards.Member{Instance: s.Daemon, Daemon: s.Daemon, Address: s.Daemon + ":1", Version: "v1"}
		c := shards.Ownership{Members: []shards.Member{m}, Leases: map[int]shards.Lease{}}
		for i := range s.Shards {
			c.Leases[i] = shards.Lease{Member: m, Since: time.Unix(1000, 0)}
		}
		f.Ownership[s.Name] = c
		f.Processes[s.Daemon] = []kv.Process{{Meta: map[string]string{"instance": s.Daemon}, Address: m.Address, Alive: true}}
		f.Reports[s.Daemon] = clusterstatus.Report{ReportResponse: report(s.Daemon, 5, 0, 7)}
	}
	return f
}

func report(instance string, sequences ...uint64) *daemonv1.ReportResponse {
	return &daemonv1.ReportResponse{Instance: instance, View: &daemonv1.View{
		Loaded: true, Lag: durationpb.New(0), Tables: []*daemonv1.TableView{{Table: "tasks", Sequences: sequences}},
	}}
}

func TestJudge(t *testing.T) {
	const (
		healthy     = musterv1.DaemonInstance_HEALTHY
		unhealthy   = musterv1.DaemonInstance_UNHEALTHY
		unreachable = musterv1.DaemonInstance_UNREACHABLE
		dead        = musterv1.DaemonInstance_DEAD
		changing    = musterv1.DaemonInstance_CHANGING
	)
	process := func(instance string, alive bool) kv.Process {
		return kv.Process{Meta: map[string]string{"instance": instance, "version": "v0"}, Address: "there:1", Alive: alive, Reason: "no answer"}
	}
	tests := map[string]struct {
		change func(*clusterstatus.Findings)
		// instance is the one to look at, of schedulerd if none is said.
		instance string
		health   musterv1.DaemonInstance_Health
		shards   int
		// lag is the commits that it lacks, "?" if that is not known.
		lag string
		// problems are parts of those that there should be, in order.
		problems []string
	}{
		"all is well": {func(*clusterstatus.Findings) {}, "", healthy, 16, "0", nil},
		"a view is behind, which is no problem by itself": {func(f *clusterstatus.Findings) {
			f.Reports["schedulerd"] = clusterstatus.Report{ReportResponse: report("schedulerd", 4, 0, 5)}
		}, "", healthy, 16, "3", nil},
		"a view is ahead of what was read before": {func(f *clusterstatus.Findings) {
			f.Reports["schedulerd"] = clusterstatus.Report{ReportResponse: report("schedulerd", 9, 9, 9)}
		}, "", healthy, 16, "0", nil},
		"an instance has a problem": {func(f *clusterstatus.Findings) {
			r := report("schedulerd", 5, 0, 7)
			r.Problem = "no contact with the store"
			f.Reports["schedulerd"] = clusterstatus.Report{ReportResponse: r}
		}, "", unhealthy, 16, "0", []string{"schedulerd schedulerd at schedulerd:1 is unhealthy: no contact with the store"}},
		"an instance does not answer": {func(f *clusterstatus.Findings) {
			f.Reports["schedulerd"] = clusterstatus.Report{Err: status.Error(codes.DeadlineExceeded, "late")}
		}, "", unreachable, 16, "?", []string{"it does not answer: late"}},
		"another instance answers": {func(f *clusterstatus.Findings) {
			f.Reports["schedulerd"] = clusterstatus.Report{ReportResponse: report("other")}
		}, "", unreachable, 16, "?", []string{"other answers at its address"}},
		"an older version does not report": {func(f *clusterstatus.Findings) {
			f.Reports["schedulerd"] = clusterstatus.Report{Err: status.Error(codes.Unimplemented, "unknown service")}
		}, "", healthy, 16, "?", nil},
		"an instance has died": {func(f *clusterstatus.Findings) {
			f.Processes["schedulerd"] = append(f.Processes["schedulerd"], process("gone", false))
		}, "gone", dead, 0, "?", []string{"schedulerd gone at there:1 is dead: no answer"}},
		"an instance is about to join": {func(f *clusterstatus.Findings) {
			f.Processes["schedulerd"] = append(f.Processes["schedulerd"], process("new", true))
			f.Reports["new"] = clusterstatus.Report{ReportResponse: report("new", 5, 0, 7)}
		}, "new", changing, 0, "0", nil},
		"shards are free": {func(f *clusterstatus.Findings) {
			for _, i := range []int{1, 2, 3, 7} {
				delete(f.Ownership["scheduler"].Leases, i)
			}
		}, "", healthy, 12, "0", []string{"no replica holds shards 1-3, 7 of the scheduler"}},
		"a daemon has no instance": {func(f *clusterstatus.Findings) {
			delete(f.Ownership, "allocator")
			f.Processes["allocatord"] = nil
		}, "", healthy, 16, "0", []string{"no allocatord takes part"}},
		"the store is away": {func(f *clusterstatus.Findings) {
			f.Store.Err, f.Store.Leader, f.Newest, f.Processes = errors.New("cut off"), "", nil, nil
			delete(f.Ownership["scheduler"].Leases, 0)
		}, "", healthy, 15, "?", []string{"the store does not answer"}},
		"a limit of the store is reached": {func(f *clusterstatus.Findings) {
			f.Store.Err = fmt.Errorf("200 connections: %w", kv.ErrLimited)
		}, "", healthy, 16, "0", []string{"the store refuses requests; what is shown is what was known last: 200 connections"}},
		"the store has no leader": {func(f *clusterstatus.Findings) { f.Store.Leader = "" }, "", healthy, 16, "0", []string{"no leader"}},
		"nothing was found": {func(f *clusterstatus.Findings) {
			*f = clusterstatus.Findings{Store: clusterstatus.Store{Err: errors.New("x")}}
		},
			"unknown", 0, 0, "", []string{"the store does not answer"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := well()
			tt.change(&f)
			m := clusterstatus.Judge(f)
			if len(m.Problems) != len(tt.problems) || m.Healthy != (len(tt.problems) == 0) {
				t.Fatalf("healthy = %v, problems = %q, want %q", m.Healthy, m.Problems, tt.problems)
			}
			for i, want := range tt.problems {
				if !strings.Contains(m.Problems[i], want) {
					t.Errorf("problem %q, want %q in it", m.Problems[i], want)
				}
			}
			if tt.instance == "" {
				tt.instance = "schedulerd"
			}
			for _, d := range m.Daemons {
				if d.Instance != tt.instance {
					continue
				}
				lag := "?"
				if d.View != nil && d.View.Commits != nil {
					lag = fmt.Sprint(*d.View.Commits)
				}
				if d.Health != tt.health || len(d.Shards) != tt.shards || lag != tt.lag {
					t.Errorf("%v with %d shards and a lag of %s, want %v with %d and %s: %v", d.Health, len(d.Shards), lag, tt.health, tt.shards, tt.lag, d)
				}
				return
			}
			if tt.health != 0 {
				t.Errorf("instance %s is not told of: %v", tt.instance, m.Daemons)
			}
		})
	}
}
