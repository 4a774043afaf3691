// Package allocatord says how services are reached. It reads services and
// writes the table endpoints, and nothing else: each service that publishes
// ports has an endpoint with the ports as they are published, and no other has
// one.
//
// Published ports are one pool, so the allocator has one shard: one replica
// works, and another takes over when it is gone. A replica that does not know
// yet that it has been replaced does no harm, for each endpoint is decided
// within the transaction that writes it.
package allocatord

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/tracing"
)

// Subsystem names the allocator's shard.
const Subsystem = "allocator"

// commitTimeout is how long endpoints may take to be written before that is logged and
// tried again.
const commitTimeout = 30 * time.Second

// Daemon allocates.
type Daemon struct {
	log     *zap.Logger
	tables  *state.Tables
	store   *store.Store
	manager *shards.Manager
	// allocated is the time from a service's change until its endpoint is
	// committed.
	allocated prometheus.Histogram
	tracer    *tracing.Tracer
}

// New returns an allocator. It starts nothing.
func New(env daemon.Env) (*Daemon, error) {
	d := &Daemon{
		log: env.Logger, tables: state.NewTables(), tracer: env.Tracer,
		allocated: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "muster_allocator_endpoint_allocated_seconds",
			Help:    "Time from a user's change of a service until what it changes of the service's endpoint is committed.",
			Buckets: daemon.StageBuckets(),
		}),
	}
	var err error
	if env.Metrics != nil {
		if err = env.Metrics.Register(d.allocated); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	d.store, err = store.New(store.Options{KV: env.KV, Prefix: env.Prefix, Logger: env.Logger, Metrics: env.Metrics},
		d.tables.Services, d.tables.Endpoints)
	if err != nil {
		return nil, err
	}
	d.manager, err = shards.New(shards.Config{
		KV: env.KV, Prefix: env.Prefix, Subsystem: Subsystem, Shards: 1, Member: env.Member,
		Session: env.Session, Logger: env.Logger, Registerer: env.Metrics,
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// View is what the daemon sees of the store.
func (d *Daemon) View() daemon.View { return d.store }

// Run allocates until ctx ends.
func (d *Daemon) Run(ctx context.Context) error {
	// The store ends last: a shard that is given up may still be written to.
	return daemon.Runner{
		{{Name: "store", Run: d.store.Run}},
		{{Name: "hold shard", Run: func(ctx context.Context) error {
			if err := d.store.Ready(ctx); err != nil {
				return err
			}
			return d.manager.Run(ctx, func(ctx context.Context, _ int) error { return d.allocate(ctx) })
		}}},
	}.Run(ctx)
}
