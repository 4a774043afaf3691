// Package dispatcherd is the daemon that workers speak to. It hears their
// heartbeats, tells them their assignments, takes what they report of their
// tasks, and passes their tasks' output to apid.
//
// It owns the tables nodestates (what a node says of itself, and whether it is
// alive) and statuses (what a worker last said of a task). It reads
// assignments, tasks, specs, services, nodes and clusters, and never writes
// them.
//
// Its work is sharded by node, over the replicas. The replica that holds a
// shard's lock serves the sessions of the shard's nodes; the others send their
// workers there. What a replica knows besides the store (who is connected, who
// was heard when, what a worker was told) lives as long as it holds the shard,
// and is built anew by the next one from the records and from what the workers
// say when they come.
//
// One goroutine follows the store and marks what has changed (follow.go). Each
// shard has one goroutine that judges its nodes' lives and writes their states
// (shard.go, verdict.go), and one that writes statuses (internal/statuses). Each session
// has one that receives (session.go), and while there is something to say one
// that sends (speak.go). What is decided is decided by pure functions: whether a
// node lives (liveness.go), what its record says (standing.go), what a worker is
// told next (internal/assignments), and what a report changes (internal/statuses). What a worker
// may say of its node is bounded in internal/bounds, and how often in pace.go.
package dispatcherd

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/calls"
	"github.com/musterhq/muster/dispatcherd/internal/liveness"
	"github.com/musterhq/muster/dispatcherd/internal/logs"
	"github.com/musterhq/muster/dispatcherd/internal/statuses"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/payload"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/tracing"
)

// Subsystem is the name under which dispatchers share out their shards, for
// those who look the owner of a node up in a [shards.Directory].
const Subsystem = "dispatcher"

// Daemon is one replica of the dispatcher.
type Daemon struct {
	dispatcherv1.UnimplementedDispatcherServiceServer

	cfg           Config
	member        shards.Member
	log           *zap.Logger
	guard         *auth.Guard
	metrics       *metrics
	tracer        *tracing.Tracer
	tables        *state.Tables
	store         *store.Store
	assignments   assignments.Reader
	manager       *shards.Manager
	roster        *shards.Roster
	directory     *shards.Directory
	nodes         liveness.Config
	owned         *ownedShards
	calls         *calls.Group
	statusMetrics *statuses.Metrics
	logs          *logs.Broker
}

// New makes a dispatcher and registers its services. It starts nothing.
func New(env daemon.Env, cfg Config) (*Daemon, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("settings of the dispatcher: %w", err)
	}
	d := &Daemon{
		cfg: cfg, member: env.Member, log: env.Logger, guard: env.Guard, tables: state.NewTables(), tracer: env.Tracer,
		owned: newOwnedShards(), calls: calls.NewGroup(),
	}
	d.assignments = assignments.NewReader(d.tables)
	t := d.tables
	var err error
	d.store, err = store.New(
		store.Options{KV: env.KV, Prefix: env.Prefix, Logger: env.Logger, Metrics: env.Metrics},
		t.Services, t.Specs, t.Nodes, t.Clusters, t.Tasks, t.Assignments, t.NodeStates, t.Statuses,
	)
	if err != nil {
		return nil, fmt.Errorf("open tables: %w", err)
	}
	d.roster = shards.NewRoster(env.KV, env.Prefix, env.Logger, Subsystem)
	d.manager, err = shards.New(shards.Config{
		Roster: d.roster,
		KV:     env.KV, Prefix: env.Prefix, Subsystem: Subsystem, Shards: store.Shards,
		Member: env.Member, Session: env.Session, Logger: env.Logger, Registerer: env.Metrics,
	})
	if err != nil {
		return nil, fmt.Errorf("share nodes out: %w", err)
	}
	d.directory = d.roster.Directory(Subsystem)
	if d.statusMetrics, err = statuses.NewMetrics(env.Metrics); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	if d.nodes, err = newTrackerConfig(env, cfg, d.store, d.tables); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	if d.metrics, err = newMetrics(env.Metrics, newCensus(d.owned.all, d.nodes)); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	d.logs, err = logs.NewBroker(logs.Config{
		QueueBytes: cfg.LogQueueBytes, Readers: cfg.LogReaders, Calls: d.calls, Metrics: env.Metrics,
	})
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	dispatcherv1.RegisterDispatcherServiceServer(env.Server, d)
	dispatcherv1.RegisterLogBrokerServiceServer(env.Server, d.logs)
	return d, nil
}

// View is what the daemon sees of the store.
func (d *Daemon) View() *store.Store { return d.store }

// Run works until ctx ends. Then it sends its workers elsewhere, gives its
// shards away, and returns when every call has ended.
func (d *Daemon) Run(ctx context.Context) error {
	// The store outlives the work: what the work does last still reads it.
	return daemon.RunTasks(context.WithoutCancel(ctx),
		daemon.Task{Name: "store", Run: d.store.Run},
		daemon.Task{Name: "roster", Run: d.roster.Run},
		daemon.Task{Name: "directory", Run: d.directory.Run},
		daemon.Task{Name: "dispatch", Run: func(outer context.Context) error {
			defer d.calls.Close()
			work, cancel := context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(outer, cancel)()
			return d.work(work)
		}},
	)
}

func (d *Daemon) work(ctx context.Context) error {
	if err := errors.Join(d.store.Ready(ctx), d.directory.Ready(ctx)); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("read what there is: %w", err)
	}
	return daemon.RunTasks(ctx,
		daemon.Task{Name: "detect pauses", Run: d.nodes.Pauses.Run},
		daemon.Task{Name: "follow the store", Run: newFollower(d.store, d.tables, d.owned).run},
		daemon.Task{Name: "own shards", Run: func(ctx context.Context) error { return d.manager.Run(ctx, d.role) }},
	)
}

// role works on one shard as long as it is this replica's.
func (d *Daemon) role(ctx context.Context, number int) error {
	// A worker that comes here must not be told less than the shard's last owner
	// told it, for it would end what it is not told of.
	t := d.tables
	if err := d.store.Sync(ctx, t.Services, t.Specs, t.Nodes, t.Tasks, t.Assignments, t.NodeStates, t.Statuses); err != nil {
		return fmt.Errorf("see what the last owner saw: %w", err)
	}
	ownership := liveness.NewOwnership(number, d.manager, d.nodes.Pauses, d.log)
	writer := statuses.NewWriter(statuses.Config{
		Store: d.store, Tables: d.tables, Confirmed: ownership.Confirmed, Metrics: d.statusMetrics, Logger: d.log,
	})
	s := &shard{liveness.NewTracker(d.nodes, number, ownership, writer), writer}
	// From here on changes reach the shard, so that none is missed between the
	// snapshot that it loads and the next.
	d.owned.set(number, s)
	defer func() { s.Close(errShardLost, d.redirect(number)) }()
	defer d.owned.set(number, nil)
	s.Load(d.store.Snapshot())
	return daemon.RunTasks(ctx,
		daemon.Task{Name: "track nodes", Run: s.Tracker.Run},
		daemon.Task{Name: "write statuses", Run: s.Writer.Run},
	)
}

// addresses are those of all dispatchers.
func (d *Daemon) addresses() []string {
	var all []string
	for _, m := range d.directory.Members() {
		all = append(all, m.Address)
	}
	return all
}

// newTrackerConfig returns what the trackers of all shards have in common.
func newTrackerConfig(env daemon.Env, cfg Config, st *store.Store, tables *state.Tables) (liveness.Config, error) {
	metrics, err := liveness.NewMetrics(env.Metrics)
	return liveness.Config{
		Timeouts: liveness.Timeouts{
			HeartbeatMisses: cfg.HeartbeatMisses, Reconnect: cfg.ReconnectGrace, Restart: cfg.RestartGrace,
			Takeover: cfg.TakeoverGrace, Unknown: cfg.UnknownAfter, Orphan: cfg.OrphanAfter,
		},
		Store: st, Tables: tables, Schemas: payload.NewSchemas(),
		Pauses:  liveness.NewPauseDetector(env.Logger),
		Lag:     liveness.NewHeartbeatLag(env.Logger),
		Periods: liveness.NewPeriods(cfg.HeartbeatPeriod, cfg.CrowdedNodes, st, tables),
		Metrics: metrics, Logger: env.Logger,
	}, err
}
