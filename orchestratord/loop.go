package orchestratord

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

// loop looks at services and has plans carried out. All its fields but the
// channels belong to the goroutine of run.
type loop struct {
	d       *Daemon
	log     *zap.Logger
	metrics *metrics

	follower     *state.Follower
	nodes        *nodes
	dependencies *dependencies
	services     map[string]*service
	held         [store.Shards]*held
	due          *queue
	// history is the cluster's limit of tasks that are kept in each slot.
	history int64

	shards  chan shardChange
	results chan result
	ended   chan struct{} // closed when run has returned
	commits sync.WaitGroup
}

// service is one of which there is a trace in the store.
type service struct {
	id    string
	shard int
	// tasks is nil while the shard is another's.
	tasks *plan.Index
	// global services need a look when a node comes or changes.
	global bool
	// constraints are those that its tasks' nodes met at the last look.
	constraints placement.Constraints
	// watchesRunning says that a task that becomes RUNNING can matter.
	watchesRunning bool
	// watchesDependencies says that tasks wait for services that this one depends on.
	watchesDependencies bool
	// lacksSpec says that the task spec was not to be found at the last look.
	lacksSpec bool
	// busy says that a plan is being committed; again, that there is a reason to
	// look when it is.
	busy, again bool
	// rest is the time before which there is no look, wholeAfter the time before which
	// there is none at all of its slots.
	rest, wholeAfter time.Time
	// traced is what was traced of its last change.
	traced traced
	// failures counts plans that could not be carried out, since the last that
	// could.
	failures int
}

// held is a shard that this replica holds.
type held struct {
	ctx context.Context
	// busy counts services with a plan that is being committed.
	busy int
	// released is closed when the shard has been given up; nil before it is to
	// be.
	released chan struct{}
}

// shardChange says that a shard was gained, or, if released is not nil, is to
// be given up.
type shardChange struct {
	shard    int
	ctx      context.Context
	released chan struct{}
}

// result is what became of a plan.
type result struct {
	service *service
	err     error
}

func newLoop(d *Daemon, m *metrics) *loop {
	return &loop{
		d: d, log: d.log, metrics: m,
		follower: state.NewFollower(d.tables), nodes: newNodes(d.tables), dependencies: newDependencies(d.tables),
		services: map[string]*service{}, due: newQueue(), history: defaults.TaskHistoryLimit(nil),
		shards: make(chan shardChange), results: make(chan result), ended: make(chan struct{}),
	}
}

// hold works on a shard until ctx ends, and returns when nothing is written
// for it any more.
func (l *loop) hold(ctx context.Context, shard int) error {
	select {
	case l.shards <- shardChange{shard: shard, ctx: ctx}:
	case <-l.ended:
		return errors.New("the orchestrator's loop has ended")
	case <-ctx.Done():
		return nil
	}
	select {
	case <-ctx.Done():
	case <-l.ended:
		return errors.New("the orchestrator's loop has ended")
	}
	released := make(chan struct{})
	select {
	case l.shards <- shardChange{shard: shard, released: released}:
	case <-l.ended:
		return nil
	}
	select {
	case <-released:
	case <-l.ended:
	}
	return nil
}

// run looks and acts until ctx ends, when no shard is held any more.
func (l *loop) run(ctx context.Context) error {
	defer close(l.ended)
	if err := l.d.store.Ready(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	changed := make(chan struct{}, 1)
	var watcher sync.WaitGroup
	watcher.Go(func() { l.watch(ctx, changed) })
	defer watcher.Wait()
	defer l.drain()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		l.advance(l.d.store.Snapshot())
		l.reconcileDue()
		l.metrics.waiting.Set(float64(len(l.due.items)))
		if at, ok := l.due.next(); ok {
			timer.Reset(time.Until(at))
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-timer.C:
		case c := <-l.shards:
			l.changeShard(c)
		case r := <-l.results:
			l.finish(r)
		}
	}
}

// watch pokes changed whenever the store holds something new.
func (l *loop) watch(ctx context.Context, changed chan<- struct{}) {
	var seen *store.Snapshot
	for {
		next, err := l.d.store.Wait(ctx, seen)
		if err != nil {
			return // only the end of ctx ends it
		}
		seen = next
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}

// drain waits for plans that are being committed.
func (l *loop) drain() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.commits.Wait()
	}()
	for {
		select {
		case <-l.results:
		case <-done:
			return
		}
	}
}

// changeShard begins or ends work on a shard.
func (l *loop) changeShard(c shardChange) {
	if c.released != nil {
		l.held[c.shard].released = c.released
		for _, s := range l.services {
			if s.shard == c.shard {
				s.tasks = nil
				l.due.remove(s.id)
			}
		}
		l.release(c.shard)
		return
	}
	l.held[c.shard] = &held{ctx: c.ctx}
	for _, s := range l.services {
		if s.shard == c.shard {
			s.tasks = plan.NewIndex(s.id, l.follower.ServiceTasks(s.id))
			l.mark(s)
		}
	}
}

// release gives a shard up when it must and nothing is being written for it.
func (l *loop) release(shard int) {
	if h := l.held[shard]; h.released != nil && h.busy == 0 {
		close(h.released)
		l.held[shard] = nil
	}
}

// mark asks for a look at a service, as soon as may be.
func (l *loop) mark(s *service) {
	switch {
	case s.tasks == nil:
	case s.busy:
		s.again = true
	default:
		l.due.add(s.id, s.rest)
	}
}

// reconcileDue reconciles all services whose time has come.
func (l *loop) reconcileDue() {
	for {
		id, ok := l.due.pop(time.Now())
		if !ok {
			return
		}
		if s := l.services[id]; s.busy {
			s.again = true
		} else {
			l.reconcile(s)
		}
	}
}

// finish notes what became of a plan.
func (l *loop) finish(r result) {
	s := r.service
	s.busy = false
	l.held[s.shard].busy--
	if r.err != nil {
		// The tasks that were to carry the trace on may not be there.
		s.traced.tasks = 0
	}
	switch {
	case r.err == nil:
		s.failures = 0
		l.metrics.commits.WithLabelValues("committed").Inc()
	case errors.Is(r.err, errStale):
		l.metrics.commits.WithLabelValues("stale").Inc()
		l.postpone(s)
	case l.held[s.shard].ctx.Err() == nil:
		l.log.Warn("failed to carry out plan", zap.String("service", s.id), zap.Error(r.err))
		l.metrics.commits.WithLabelValues("failed").Inc()
		l.postpone(s)
	}
	if s.again {
		s.again = false
		l.mark(s)
	}
	l.release(s.shard)
}

// postpone lets a service rest for a while that grows with each failure, and
// be looked at then.
func (l *loop) postpone(s *service) {
	const first, most = 5 * time.Millisecond, 5 * time.Second
	s.failures++
	s.rest = time.Now().Add(min(first<<min(s.failures-1, 10), most))
	s.again = true
}
