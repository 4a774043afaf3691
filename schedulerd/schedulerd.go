// Package schedulerd gives tasks their nodes. It reads services, tasks, specs,
// nodes, what nodes report, and networks with what the allocator gave them. It writes the tables assignments (which node runs
// a task), placements (why tasks have none) and scheduler_fences (which scheduler
// has a shard), and nothing else.
//
// Its work is cut by service: each replica schedules the tasks of the services
// in the shards that it holds. Assignments are cut by node, so that the
// compare-and-set on a node's shard guards the node's resources and ports: two
// schedulers that fill one node meet there, and the later one decides again on
// what is now true. What guards that one task gets one node only is the shard's
// fence; see package fence.
package schedulerd

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/fence"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/tracing"
)

// Subsystem names the scheduler's shards.
const Subsystem = "scheduler"

// explainEvery is how often the explanation of one service's waiting tasks is written
// again while it keeps changing.
const explainEvery = time.Second

// Daemon schedules.
type Daemon struct {
	log     *zap.Logger
	tables  *state.Tables
	store   *store.Store
	manager *shards.Manager
	fences  *fence.Fences
	metrics metrics
	tracer  *tracing.Tracer

	mu sync.Mutex
	// held are the shards that may be scheduled.
	held map[int]bool
	// changed is set when held has changed since the loop last asked, and wake
	// ends the loop's wait.
	changed bool
	wake    context.CancelFunc
	// reconciling holds one thing while the loop reconciles, so that a shard is given up
	// between two reconciliations.
	reconciling chan struct{}
}

// New returns a scheduler. It starts nothing.
func New(env daemon.Env) (*Daemon, error) {
	d := &Daemon{
		log: env.Logger, tables: state.NewTables(), tracer: env.Tracer,
		held: map[int]bool{}, wake: func() {}, reconciling: make(chan struct{}, 1),
	}
	var err error
	d.store, err = store.New(store.Options{KV: env.KV, Prefix: env.Prefix, Logger: env.Logger, Metrics: env.Metrics},
		d.tables.Services, d.tables.Specs, d.tables.Tasks, d.tables.Assignments, d.tables.Placements, d.tables.SchedulerFences,
		d.tables.Nodes, d.tables.NodeStates, d.tables.Statuses, d.tables.Networks, d.tables.NetworkStates, d.tables.Blocks)
	if err != nil {
		return nil, err
	}
	d.fences = newFences(d.tables, env.Member.Instance, d.log)
	d.manager, err = shards.New(shards.Config{
		KV: env.KV, Prefix: env.Prefix, Subsystem: Subsystem, Member: env.Member,
		Session: env.Session, Logger: env.Logger, Registerer: env.Metrics,
	})
	if err != nil {
		return nil, err
	}
	if d.metrics, err = newMetrics(env.Metrics); err != nil {
		return nil, err
	}
	return d, nil
}

// View is what the daemon sees of the store.
func (d *Daemon) View() daemon.View { return d.store }

// Run schedules until ctx ends.
func (d *Daemon) Run(ctx context.Context) error {
	// The store ends last: shards that are given up may still be written to.
	return daemon.Runner{
		{{Name: "store", Run: d.store.Run}},
		{
			{Name: "schedule", Run: d.loop},
			{Name: "hold shards", Run: func(ctx context.Context) error {
				if err := d.store.Ready(ctx); err != nil {
					return err
				}
				return d.manager.Run(ctx, d.hold)
			}},
		},
	}.Run(ctx)
}

// hold is the role of one shard: it lets the loop schedule it until ctx ends.
func (d *Daemon) hold(ctx context.Context, shard int) error {
	return d.fences.Hold(ctx, d.store, shard, func() { d.set(shard, true) }, func() {
		d.set(shard, false)
		d.finishReconcile()
	})
}

// finishReconcile waits for the end of a reconciliation that began before, which may
// still write.
func (d *Daemon) finishReconcile() {
	d.reconciling <- struct{}{}
	<-d.reconciling
}

func (d *Daemon) set(shard int, held bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if held {
		d.held[shard] = true
	} else {
		delete(d.held, shard)
	}
	d.changed = true
	d.wake()
}

// shards returns the shards that are held, and whether they have changed since
// the last call.
func (d *Daemon) shards() (held map[int]bool, changed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed, d.changed = d.changed, false
	return maps.Clone(d.held), changed
}

// wait waits for a newer snapshot, for a change of the shards, or for some time
// (0: without end), whichever comes first.
func (d *Daemon) wait(ctx context.Context, after *store.Snapshot, most time.Duration) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if most > 0 {
		ctx, cancel = context.WithTimeout(ctx, most)
		defer cancel()
	}
	d.mu.Lock()
	if d.changed {
		cancel()
	}
	d.wake = cancel
	d.mu.Unlock()
	// Whatever ended the wait, the loop reconciles.
	_, _ = d.store.Wait(ctx, after)
}

// metrics are what an operator sees of the scheduler.
type metrics struct {
	placed         prometheus.Counter
	refused        prometheus.Counter
	waiting        prometheus.Gauge
	reconcileTimes prometheus.Histogram
	assigned       prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) (metrics, error) {
	m := metrics{
		placed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_scheduler_placed_total", Help: "Tasks that were given a node."}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_scheduler_refused_total", Help: "Placements that no longer held when they were committed, and were decided again."}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "muster_scheduler_waiting_tasks", Help: "Tasks of this replica's shards that have no node."}),
		reconcileTimes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "muster_scheduler_reconcile_seconds", Help: "Time of one scheduling round: placing tasks and committing their assignments.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}),
		assigned: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "muster_scheduler_task_assigned_seconds",
			Help:    "Time from the creation of a task until its assignment to a node is committed. Tasks for which there was no room at first are not counted.",
			Buckets: daemon.StageBuckets()}),
	}
	for _, c := range []prometheus.Collector{m.placed, m.refused, m.waiting, m.reconcileTimes, m.assigned} {
		if r == nil {
			break
		}
		if err := r.Register(c); err != nil {
			return metrics{}, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}
