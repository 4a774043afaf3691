package schedulerd

import (
	"context"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/schedulerd/internal/plan"
)

// After a failed commit the loop reconciles again after retryAfter, and after many in a row
// after at most mostRetryAfter. A change of the store ends the wait.
const (
	retryAfter     = 50 * time.Millisecond
	mostRetryAfter = 5 * time.Second
)

// loop reconciles whenever the store or the shards have changed.
func (d *Daemon) loop(ctx context.Context) error {
	if err := d.store.Ready(ctx); err != nil {
		return err
	}
	m := newModel(d.tables)
	explained := plan.NewExplanations(explainEvery)
	failures := 0
	for ctx.Err() == nil {
		again, failed := d.reconcile(ctx, m, explained)
		failures++
		if !failed {
			failures = 0
		} else if failures > 1 {
			again = max(again, min(retryAfter<<min(failures-1, 10), mostRetryAfter))
		}
		d.wait(ctx, m.now, again)
	}
	return nil
}

// reconcile brings the model up to date, decides where waiting tasks go, and commits that.
// It returns when to reconcile again even if nothing changes (0 means never), and whether
// something could not be written.
func (d *Daemon) reconcile(ctx context.Context, m *model, explained *plan.Explanations) (again time.Duration, failed bool) {
	d.reconciling <- struct{}{}
	defer func() { <-d.reconciling }()
	began := time.Now()
	// In this order: the snapshot must not be older than the fence of a shard that
	// is held, because what others assigned before would not be in it.
	held, changed := d.shards()
	m.advance(d.store.Snapshot(), began)
	mine := func(service string) bool { return held[store.ShardOf(service)] }
	refusing := d.refuse(ctx, m, held)
	p := plan.Decide(d.input(m, d.services(m, changed), mine, began))
	m.take(&p)
	for _, x := range p.Explanations {
		explained.Set(x)
	}
	again = d.commit(ctx, m, &p, began)
	if d.sweep(ctx, m, held) || refusing {
		again = retryAfter
	}
	explained.Keep(mine)
	wait, err := d.writeExplanations(ctx, explained)
	if err != nil && ctx.Err() == nil {
		d.log.Warn("failed to write explanations", zap.Error(err))
	}
	d.observe(m, mine, &p, time.Since(began))
	failed = again != 0 || err != nil
	if again == 0 || wait > 0 && wait < again {
		again = wait
	}
	return again, failed
}

// services returns the services to decide on, and forgets that they are pending. Those
// whose tasks waited for room are decided on when there is more of it; all are when the
// shards have changed.
func (d *Daemon) services(m *model, shardsChanged bool) map[string]struct{} {
	services := m.pendingServices
	if m.capacityFreed || shardsChanged {
		services = maps.Clone(services)
		for s := range m.waiting {
			services[s] = struct{}{}
		}
	}
	if shardsChanged {
		d.explainedServices(m.now, services)
	}
	m.pendingServices, m.capacityFreed = map[string]struct{}{}, false
	return services
}

// input gathers what a decision on services rests on, as far as they are this
// scheduler's.
func (d *Daemon) input(m *model, services map[string]struct{}, mine func(service string) bool, now time.Time) *plan.Input {
	in := &plan.Input{
		Now: now, Nodes: m, Faults: m.faults, Verdicts: m.verdicts, Network: m.networks.Network,
		Spec: func(digest string) *musterv1.TaskSpec {
			e, _ := d.tables.Specs.Get(m.now, state.SpecKey([]byte(digest)))
			return e.Value.GetTask()
		},
	}
	for _, id := range slices.Sorted(maps.Keys(services)) {
		if !mine(id) {
			continue
		}
		s := plan.Service{ID: id, Tasks: slices.Collect(maps.Values(m.waiting[id]))}
		if e, ok := d.tables.Services.Get(m.now, id); ok {
			s.Record = e.Value
		}
		in.Services = append(in.Services, s)
	}
	return in
}

func (d *Daemon) observe(m *model, mine func(service string) bool, p *plan.Plan, took time.Duration) {
	waiting := 0
	for service, tasks := range m.waiting {
		if mine(service) {
			waiting += len(tasks)
		}
	}
	d.metrics.waiting.Set(float64(waiting - p.Size))
	if p.Size > 0 {
		d.metrics.reconcileTimes.Observe(took.Seconds())
		d.log.Debug("tasks placed", zap.Int("tasks", p.Size), zap.Int("nodes", len(p.Choices)), zap.Duration("took", took))
	}
}
