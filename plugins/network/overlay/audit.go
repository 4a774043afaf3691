//go:build linux

package overlay

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/durationpb"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/overlay/internal/flows"
	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
	"github.com/musterhq/muster/plugins/network/overlay/internal/ruleset"
)

func (p *Plugin) auditAlways(ctx context.Context) {
	tick := time.NewTicker(auditInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-p.differs:
		}
		if repairs, err := p.Audit(ctx); err != nil {
			p.log.Warn("failed to audit networks", zap.Uint64("repairs", repairs), zap.Error(err))
		} else if repairs > 0 {
			p.log.Warn("networks differed from what was applied and were repaired", zap.Uint64("repairs", repairs))
		}
	}
}

// auditSoon has networks be compared with the kernel now.
func (p *Plugin) auditSoon() {
	select {
	case p.differs <- struct{}{}:
	default:
	}
}

// Audit compares the kernel with what was applied, changes what differs, and returns how
// many changes that took.
func (p *Plugin) Audit(ctx context.Context) (repairs uint64, err error) {
	p.applying.Lock()
	defer p.applying.Unlock()
	p.mu.Lock()
	networks := slices.Collect(maps.Values(p.networks))
	node := p.node
	p.mu.Unlock()
	var errs []error
	known := make(map[string]bool)
	for _, n := range networks {
		known[n.id] = true
		changes, err := n.audit()
		repairs += changes
		errs = append(errs, err)
	}
	if node != nil {
		changes, err := p.edge.verify(node.GetId(), known)
		repairs += changes
		errs = append(errs, err, p.tunnel.Verify(node.GetId()))
	}
	if len(networks) > 0 {
		// Names are answered in namespaces that were made again.
		failed, err := p.applyNames(ctx, &networkv1.ApplyRequest{Node: node})
		errs = append(errs, err)
		for _, err := range failed {
			errs = append(errs, err)
		}
	}
	p.repairs.Add(repairs)
	return repairs, errors.Join(errs...)
}

func (n *network) audit() (repairs uint64, err error) {
	n.mu.Lock()
	before := n.kernel.Changes()
	err = n.ensureAll()
	stale := n.staleFlows()
	if err == nil {
		err = n.auditTasks()
	}
	repairs = n.kernel.Changes() - before
	n.mu.Unlock()
	return repairs, errors.Join(err, stale())
}

func (n *network) auditTasks() error {
	known := make(map[string]bool)
	var errs []error
	for _, t := range n.tasks {
		known[link.TaskLink(t.id, n.id)] = true
		errs = append(errs, n.auditTask(t))
	}
	return errors.Join(append(errs, n.kernel.RemoveUnknown(n.sandbox.Space, known))...)
}

func (n *network) auditTask(t *task) error {
	space, err := n.plugin.mounts().Open(t.request.GetNamespace())
	if err != nil {
		// The task has ended, and will be detached.
		return nil
	}
	defer func() { _ = space.Close() }()
	if space.Same(n.plugin.host) {
		return nil
	}
	n.plugin.mu.Lock()
	standard := n.plugin.defaultOf(t)
	n.plugin.mu.Unlock()
	i := slices.IndexFunc(t.request.GetAttachments(), func(a *networkv1.Attachment) bool { return a.GetNetworkId() == n.id })
	_, err = n.kernel.AttachNetwork(n.sandbox, space, n.placeOf(t, i, standard))
	return err
}

// Stats returns counts for metrics.
func (p *Plugin) Stats(ctx context.Context) (*networkv1.StatsResponse, error) {
	names := p.names.Stats(ctx)
	p.mu.Lock()
	networks := slices.Collect(maps.Values(p.networks))
	s := &networkv1.StatsResponse{
		DnsAnswers: names.GetDnsAnswers(), DnsFailures: names.GetDnsFailures(), DroppedPackets: names.GetDroppedPackets(),
		Networks: uint64(len(networks)), AttachedTasks: uint64(len(p.tasks)), Repairs: p.repairs.Load(),
		LastApply: durationpb.New(time.Duration(p.lastApply.Load())),
	}
	p.mu.Unlock()
	dropped, err := p.edge.dropped()
	s.DroppedPackets += dropped
	errs := []error{err}
	for _, n := range networks {
		errs = append(errs, n.count(s))
	}
	return s, errors.Join(errs...)
}

func (n *network) count(s *networkv1.StatsResponse) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	s.Services += uint64(len(n.services))
	for _, one := range n.services {
		s.Backends += uint64(len(one.backends))
	}
	if n.sandbox == nil {
		return nil
	}
	err := n.sandbox.Space.Do(func() error {
		entries, limit := flows.Count()
		s.ConntrackEntries += entries
		s.ConntrackLimit = limit
		return nil
	})
	return errors.Join(err, n.eachTable(func(_ bool, t *ruleset.Table) error {
		for _, chain := range []string{ruleset.ChainSource, ruleset.ChainForward} {
			packets, err := t.Counters(chain)
			if err != nil {
				return err
			}
			s.DroppedPackets += packets
		}
		return nil
	}))
}
