// Package orchestratord keeps services as their specs say: it makes, replaces,
// ends and forgets their tasks, and tells how far an update has come. It reads
// services, specs, names, clusters, nodes, what nodes report, assignments and
// statuses; it writes the tables tasks and rollouts, and nothing else.
//
// What to do is decided by package plan, which is pure. This package looks when
// something has changed that can matter, and when a wait is over; lets plan
// decide; and commits what was decided, if the store still is what the decision
// rests on. It remembers nothing that is not in the store but for the sake of
// speed, so it can be killed anywhere, and run twice.
//
// Its work is cut by service: each replica looks after the services in the
// shards that it holds.
package orchestratord

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/tracing"
)

// Subsystem names the orchestrator's shards.
const Subsystem = "orchestrator"

const (
	// decideShare is the share of its time that the orchestrator spends on deciding on
	// one service, at most. After a decision that took t it decides on the same service
	// again no sooner than t/decideShare - t later. A decision on 10,000 tasks takes some
	// 2 ms, so it is made 50 times a second.
	decideShare = 0.1
	// commitTimeout is how long a decision may take to be committed. After it the service
	// is decided on again.
	commitTimeout = 30 * time.Second
)

// Daemon orchestrates.
type Daemon struct {
	log     *zap.Logger
	tables  *state.Tables
	store   *store.Store
	manager *shards.Manager
	loop    *loop
	tracer  *tracing.Tracer
}

// New returns an orchestrator. It starts nothing.
func New(env daemon.Env) (*Daemon, error) {
	d := &Daemon{log: env.Logger, tables: state.NewTables(), tracer: env.Tracer}
	var err error
	d.store, err = store.New(store.Options{KV: env.KV, Prefix: env.Prefix, Logger: env.Logger, Metrics: env.Metrics},
		d.tables.Services, d.tables.Specs, d.tables.Clusters, d.tables.Nodes, d.tables.NodeStates,
		d.tables.Tasks, d.tables.Rollouts, d.tables.Assignments, d.tables.Statuses, d.tables.Names)
	if err != nil {
		return nil, err
	}
	d.manager, err = shards.New(shards.Config{
		KV: env.KV, Prefix: env.Prefix, Subsystem: Subsystem, Member: env.Member,
		Session: env.Session, Logger: env.Logger, Registerer: env.Metrics,
	})
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(env.Metrics)
	if err != nil {
		return nil, err
	}
	d.loop = newLoop(d, m)
	return d, nil
}

// View is what the daemon sees of the store.
func (d *Daemon) View() daemon.View { return d.store }

// Run orchestrates until ctx ends.
func (d *Daemon) Run(ctx context.Context) error {
	// Giving up a shard waits for the loop to finish with it, and the loop waits
	// for the store.
	return daemon.Runner{
		{{Name: "store", Run: d.store.Run}},
		{{Name: "loop", Run: d.loop.run}},
		{{Name: "hold shards", Run: func(ctx context.Context) error {
			if err := d.store.Ready(ctx); err != nil {
				return err
			}
			return d.manager.Run(ctx, d.loop.hold)
		}}},
	}.Run(ctx)
}

// Owned returns the shards that this replica holds.
func (d *Daemon) Owned() []int { return d.manager.Owned() }
