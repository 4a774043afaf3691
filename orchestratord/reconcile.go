package orchestratord

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

// quickDecision is the longest duration of a decision that delays no later one.
const quickDecision = 200 * time.Microsecond

// reconcile decides what to do for a service, and has it carried out.
func (l *loop) reconcile(s *service) {
	c, w := l.read(s)
	if w.Service == nil && s.tasks.Empty() && w.Rollout == nil {
		delete(l.services, s.id) // nothing is left of it
		return
	}
	began := time.Now()
	p, err := plan.Decide(w)
	took := time.Since(began)
	l.metrics.decisions.Observe(took.Seconds())
	s.pause(p.Whole, began, took, decideShare)
	if s.lacksSpec = errors.Is(err, plan.ErrSpecUnknown); s.lacksSpec {
		// It was written with the service, and will be seen in a moment.
		l.log.Debug("service waits for its spec", zap.String("service", s.id))
		return
	}
	if err != nil {
		// A change of the service leads to another decision.
		l.log.Info("service is left alone", zap.String("service", s.id), zap.Error(err))
		return
	}
	s.global = w.Service.GetSpec().GetGlobal() != nil
	s.constraints = c.constraints
	if !p.Postponed {
		s.watchesRunning, s.watchesDependencies = p.WatchesRunning, p.WatchesDependencies
	}
	if !p.Next.IsZero() {
		l.due.add(s.id, p.Next)
	}
	if p.Empty() {
		return
	}
	c.plan = p
	span := l.trace(s, w.Service, p, began)
	h := l.held[s.shard]
	s.busy = true
	h.busy++
	l.metrics.committing.Inc()
	l.commits.Go(func() {
		ctx, cancel := context.WithTimeout(h.ctx, commitTimeout)
		defer cancel()
		err := c.run(ctx, l.d.store)
		if err == nil {
			l.metrics.committed(&p, began, time.Now())
			l.report(s.id, p)
		}
		l.metrics.committing.Dec()
		span.End(err)
		l.results <- result{service: s, err: err}
	})
}

// pause delays the next decision about the service, or about all of its slots, after a
// decision that took long. Decisions then take at most share of the time.
func (s *service) pause(whole bool, began time.Time, took time.Duration, share float64) {
	if took <= quickDecision {
		return
	}
	until := began.Add(time.Duration(float64(took) / share))
	if whole {
		s.wholeAfter = until
	} else {
		s.rest = until
	}
}

// read gathers what a decision rests on, and what its commit has to check.
func (l *loop) read(s *service) (*commit, *plan.Input) {
	now := l.follower.Snapshot()
	w := &plan.Input{
		Now: time.Now(), ServiceID: s.id, Cluster: l.nodes, HistoryLimit: l.history,
		Spec: func(digest []byte) *musterv1.TaskSpec {
			e, _ := l.d.tables.Specs.Get(now, state.SpecKey(digest))
			return e.Value.GetTask()
		},
		NewID: state.NewID, Tasks: s.tasks, WholeAfter: s.wholeAfter,
	}
	c := &commit{tables: l.d.tables, service: s.id}
	if e, ok := l.d.tables.Services.Get(now, s.id); ok {
		w.Service, c.version, w.Waits = e.Value, e.Version, l.waits(e.Value.GetSpec())
		c.replicas, c.counted = plan.Replicas(e.Value)
	} else {
		removal, _ := l.d.tables.Names.Get(now, state.RemovedNameKey(s.id))
		c.removed, w.StopAfter = removal.Version, l.stopAfter(s.id)
	}
	if e, ok := l.d.tables.Rollouts.Get(now, s.id); ok {
		w.Rollout, c.rollout = e.Value, e.Version
	}
	if w.Service != nil {
		// Decide fails if the constraints cannot be parsed.
		follows := state.EffectiveSpec(w.Service, w.Rollout).Digest
		c.constraints, _ = placement.ParseConstraints(w.Spec(follows).GetPlacement().GetConstraints())
	}
	return c, w
}

// report logs and counts a plan that was committed.
func (l *loop) report(service string, p plan.Plan) {
	counts := map[plan.Reason]int{}
	for _, s := range p.Slots {
		for _, c := range s.Changes {
			counts[c.Reason]++
		}
	}
	for reason, n := range counts {
		l.metrics.changes.WithLabelValues(string(reason)).Add(float64(n))
		l.log.Debug("tasks changed", zap.String("service", service), zap.String("reason", string(reason)), zap.Int("tasks", n))
	}
	if p.Rollout != nil {
		l.log.Info("update continues", zap.String("service", service), zap.Stringer("state", p.Rollout.State), zap.String("message", p.Rollout.Message))
	}
}
