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
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/calls"
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
	pulse         *pulse
	hearing       hearing
	schemas       *payload.Schemas
	calls         *calls.Group
	statusMetrics *statuses.Metrics
	logs          *logs.Broker
	// connected counts the sessions of all shards.
	connected atomic.Int64

	mu sync.Mutex
	// owned holds the shards that this replica works on, by number.
	owned [store.Shards]*shard
	// changed is closed and replaced when owned changes.
	changed chan struct{}
}

// New makes a dispatcher and registers its services. It starts nothing.
func New(env daemon.Env, cfg Config) (*Daemon, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("settings of the dispatcher: %w", err)
	}
	d := &Daemon{
		cfg: cfg, member: env.Member, log: env.Logger, guard: env.Guard, tables: state.NewTables(), tracer: env.Tracer,
		pulse: newPulse(time.Now()), schemas: payload.NewSchemas(), changed: make(chan struct{}), calls: calls.NewGroup(),
	}
	d.assignments = assignments.NewReader(d.tables)
	d.hearing.d = d
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
	if d.metrics, err = newMetrics(env.Metrics, d); err != nil {
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
		daemon.Task{Name: "pulse", Run: func(ctx context.Context) error { return d.pulse.run(ctx, d.log) }},
		daemon.Task{Name: "follow the store", Run: newFollower(d).run},
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
	s := newShard(d, number)
	// From here on changes reach the shard, so that what it reads next cannot
	// be overtaken unseen.
	d.own(number, s)
	defer s.close()
	defer d.own(number, nil)
	s.gain(d.store.Snapshot())
	return daemon.RunTasks(ctx,
		daemon.Task{Name: "judge nodes", Run: s.run},
		daemon.Task{Name: "write statuses", Run: s.statuses.Run},
	)
}

func (d *Daemon) own(number int, s *shard) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.owned[number] = s
	close(d.changed)
	d.changed = make(chan struct{})
}

// shardOf returns the shard of a node, nil if it is not owned, and a channel
// that is closed when that may have changed.
func (d *Daemon) shardOf(node string) (*shard, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.owned[store.ShardOf(node)], d.changed
}

// shards returns the shards that are owned.
func (d *Daemon) shards() []*shard {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(d.owned[:]), func(s *shard) bool { return s == nil })
}

// addresses are those of all dispatchers.
func (d *Daemon) addresses() []string {
	var all []string
	for _, m := range d.directory.Members() {
		all = append(all, m.Address)
	}
	return all
}

// offPace reports whether a worker's period is so far from what it should be that it
// is to be told: by more than a quarter.
func offPace(period, due time.Duration) bool {
	return period < due*4/5 || period > due*5/4
}

// period is how often a session is to be heard: the cluster's setting,
// stretched where this replica holds very many nodes.
func (d *Daemon) period() time.Duration {
	period := d.cfg.HeartbeatPeriod
	if c, ok := d.tables.Clusters.Get(d.store.Snapshot(), state.ClusterID); ok {
		if p := c.Value.GetSpec().GetDispatcher().GetHeartbeatPeriod().AsDuration(); p > 0 {
			period = p
		}
	}
	if n := int(d.connected.Load()); n > d.cfg.CrowdedNodes {
		period = period * time.Duration(n) / time.Duration(d.cfg.CrowdedNodes)
	}
	return period
}
