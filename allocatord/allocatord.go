// Package allocatord gives networks their addresses and services their ports. It writes
// the tables networkstates (what a network got), blocks (which node has which addresses
// of it), endpoints (published ports and virtual addresses of services) and
// allocator_fences, and nothing else.
//
// Its work is divided into 17 shards. Shard 0 is what must be unique in the cluster:
// published ports, subnets and network identifiers. The others are by network: blocks and
// virtual addresses. So all replicas are active. A shard's fence makes sure that a replica
// which was paused, and does not know yet that another one has the shard, commits nothing:
// see package fence.
//
// Blocks follow from assignments, which many clusters have in great numbers. So the store of
// the networks' shards, which reads them, is opened when there is a network.
package allocatord

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/tracing"
)

// Subsystem names the allocator's shards.
const Subsystem = "allocator"

const (
	// Shards is the number of the allocator's shards.
	Shards = 1 + store.Shards
	// poolShard is the shard of what is unique in the cluster. Versions before networks
	// have no other.
	poolShard = 0
)

// shardOf returns the shard of a network.
func shardOf(network string) int { return 1 + store.ShardOf(network) }

// Daemon allocates.
type Daemon struct {
	log     *zap.Logger
	env     daemon.Env
	tables  *state.Tables
	store   *store.Store
	manager *shards.Manager
	metrics *metrics
	tracer  *tracing.Tracer

	pool     *role
	networks *role
	// opened is closed when the networks' role has its store.
	opened chan struct{}
}

// New returns an allocator. It starts nothing.
func New(env daemon.Env) (*Daemon, error) {
	d := &Daemon{log: env.Logger, env: env, tables: state.NewTables(), tracer: env.Tracer, opened: make(chan struct{})}
	var err error
	if d.metrics, err = newMetrics(env.Metrics); err != nil {
		return nil, err
	}
	t := d.tables
	if d.store, err = d.open(env.Metrics, t.Clusters); err != nil {
		return nil, err
	}
	d.pool = newRole(d.log, newFences(t, env.Member.Instance, d.log, func(tx *store.Tx, _ int) {
		readAll(tx, t.Endpoints.Get)
		readAll(tx, t.NetworkStates.Get)
	}))
	d.networks = newRole(d.log, newFences(t, env.Member.Instance, d.log, func(tx *store.Tx, shard int) {
		readAll(tx, t.Endpoints.Get)
		t.NetworkStates.Get(tx, keyIn(shard-1))
		t.Blocks.Get(tx, keyIn(shard-1))
	}))
	d.pool.open(d.store)
	d.manager, err = shards.New(shards.Config{
		KV: env.KV, Prefix: env.Prefix, Subsystem: Subsystem, Shards: Shards, Member: env.Member,
		Session: env.Session, Logger: env.Logger, Registerer: env.Metrics,
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// open opens a store with the tables that both roles need, and more.
func (d *Daemon) open(metrics prometheus.Registerer, more ...store.TableDef) (*store.Store, error) {
	t := d.tables
	return store.New(store.Options{KV: d.env.KV, Prefix: d.env.Prefix, Logger: d.log, Metrics: metrics}, append(more,
		t.Services, t.Rollouts, t.Networks, t.NetworkStates, t.Blocks, t.Endpoints, t.AllocatorFences)...)
}

// View is what the daemon sees of the store.
func (d *Daemon) View() daemon.View { return d.store }

// Run allocates until ctx ends.
func (d *Daemon) Run(ctx context.Context) error {
	// The store ends last: a shard that is given up may still be written to.
	return daemon.Runner{
		{{Name: "store", Run: d.store.Run}},
		{
			{Name: "allocate ports and subnets", Run: d.allocateFromPools},
			{Name: "allocate addresses", Run: d.allocateOnNetworks},
			{Name: "hold shards", Run: func(ctx context.Context) error {
				if err := d.store.Ready(ctx); err != nil {
					return err
				}
				return d.manager.Run(ctx, d.hold)
			}},
		},
	}.Run(ctx)
}

// hold is the work on one shard.
func (d *Daemon) hold(ctx context.Context, shard int) error {
	if shard == poolShard {
		return d.pool.hold(ctx, shard)
	}
	select {
	case <-ctx.Done():
		return nil
	case <-d.opened:
		return d.networks.hold(ctx, shard)
	}
}

// allocateFromPools runs the loop of shard 0.
func (d *Daemon) allocateFromPools(ctx context.Context) error {
	if err := d.store.Ready(ctx); err != nil {
		return err
	}
	p := &pools{d: d}
	d.pool.run(ctx, p.reconcile)
	return nil
}

// allocateOnNetworks waits for the first network, and runs the loop of the networks'
// shards.
func (d *Daemon) allocateOnNetworks(ctx context.Context) error {
	var now *store.Snapshot
	for {
		next, err := d.store.Wait(ctx, now, d.tables.Networks, d.tables.NetworkStates)
		if err != nil {
			return nil // only the end of ctx ends it
		}
		if now = next; hasRecords(d.tables.Networks, now) || hasRecords(d.tables.NetworkStates, now) {
			break
		}
	}
	t := d.tables
	full, err := d.open(nil, t.Specs, t.Nodes, t.NodeStates, t.Assignments, t.Statuses)
	if err != nil {
		return err
	}
	d.networks.open(full)
	return daemon.Runner{
		{{Name: "store", Run: full.Run}},
		{{Name: "reconcile", Run: func(ctx context.Context) error {
			if err := full.Ready(ctx); err != nil {
				return err
			}
			close(d.opened)
			m := newModel(d, full)
			d.networks.run(ctx, m.reconcile)
			return nil
		}}},
	}.Run(ctx)
}

// hasRecords reports whether a table has a record.
func hasRecords[T any](t *store.Table[T], now *store.Snapshot) bool {
	for range t.Scan(now, "") {
		return true
	}
	return false
}

// metrics are what an operator sees of the allocator.
type metrics struct {
	endpoints prometheus.Histogram
	leases    prometheus.Histogram
	held      *prometheus.GaugeVec
	waiting   *prometheus.GaugeVec
}

// Kinds of what is held and waited for, the values of the label "kind".
const (
	kindPort    = "port"
	kindSubnet  = "subnet"
	kindBlock   = "block"
	kindVirtual = "virtual_address"
	kindTask    = "task_address"
)

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		endpoints: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "muster_allocator_endpoint_allocated_seconds",
			Help:    "Time from a user's change of a service until what it changes of the service's endpoint is committed.",
			Buckets: daemon.StageBuckets(),
		}),
		leases: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "muster_allocator_block_leased_seconds",
			Help:    "Time from the assignment of a task until the block that its node needed for it is leased.",
			Buckets: daemon.StageBuckets(),
		}),
		held: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "muster_allocator_held",
			Help: "What is allocated in this replica's shards, by kind: published ports, networks' subnets, blocks of nodes, virtual addresses of services, addresses for tasks.",
		}, []string{"kind"}),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "muster_allocator_waiting",
			Help: "What cannot be allocated in this replica's shards because none is left or another service has it, by kind.",
		}, []string{"kind"}),
	}
	for _, c := range []prometheus.Collector{m.endpoints, m.leases, m.held, m.waiting} {
		if r == nil {
			break
		}
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}
