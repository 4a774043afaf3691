// Package dispatcherd is the daemon that workers connect to. It receives their
// heartbeats, sends them their assignments, writes what they report about their
// tasks, and passes their tasks' output to apid.
//
// It owns the tables nodestates (a node's description, and whether it is alive) and
// statuses (the last report of each task). It reads assignments, tasks, specs,
// services, nodes, clusters, configs, blobs, secrets and sealedblobs, and of networks also
// networkstates, blocks, endpoints and rollouts. It never writes them.
//
// Its work is divided by node into shards. The replica that holds a shard's lock
// serves the sessions of the shard's nodes. The others redirect the workers of these
// nodes. What a replica knows beyond the store (sessions, heartbeats, what a worker
// was sent) exists while it owns the shard. The next owner builds it again, from the
// records and from what workers report.
//
// This package only connects the parts, which are packages:
//
//   - assignments decides what a worker must be sent,
//   - networks knows what the nodes of each network must be told,
//   - statuses writes reports,
//   - liveness decides whether nodes are alive, and writes their records,
//   - logs passes output to readers,
//   - session serves workers.
//
// Each imports only packages above it in this list, and the leaves bounds, calls and
// retry. It knows packages below it only as small interfaces. One goroutine follows
// the store and tells the shards what changed (follow.go). Each shard has one goroutine
// that tracks nodes and one that writes statuses. Each session has one that receives,
// and one that sends while there is something to send.
package dispatcherd

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/calls"
	"github.com/musterhq/muster/dispatcherd/internal/liveness"
	"github.com/musterhq/muster/dispatcherd/internal/logs"
	"github.com/musterhq/muster/dispatcherd/internal/networks"
	"github.com/musterhq/muster/dispatcherd/internal/probes"
	"github.com/musterhq/muster/dispatcherd/internal/session"
	"github.com/musterhq/muster/dispatcherd/internal/statuses"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/payload"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// Subsystem is the name under which dispatchers divide their shards, for
// [shards.Directory].
const Subsystem = "dispatcher"

// Daemon is one replica of the dispatcher.
type Daemon struct {
	log       *zap.Logger
	tables    *state.Tables
	store     *store.Store
	manager   *shards.Manager
	roster    *shards.Roster
	directory *shards.Directory
	owned     *ownedShards
	networks  *networks.Index
	follower  *follower
	// nodes and statuses configure the parts of each shard.
	nodes    liveness.Config
	statuses *statuses.Metrics
	sessions *session.Server
	calls    *calls.Group
	keys     *seal.Keyring
}

// ClusterKeys implements daemon.KeyHolder.
func (d *Daemon) ClusterKeys() []string { return d.keys.Names() }

// OpenSecret opens the data of a secret that a worker is about to be sent.
func (d *Daemon) OpenSecret(id string, record *recordv1.Secret, sealed []byte) ([]byte, error) {
	data, err := d.keys.OpenSecret(id, record, sealed)
	if err != nil {
		d.log.Error("failed to open secret; tasks that need it wait", zap.String("secret", id), zap.Error(err))
	}
	return data, err
}

// OpenSpec opens the values of a task spec that a worker is about to be sent.
func (d *Daemon) OpenSpec(id string, record *recordv1.Spec) (*musterv1.TaskSpec, error) {
	spec, err := d.keys.OpenSpec(id, record)
	if err != nil {
		d.log.Error("failed to open task spec; its tasks wait", zap.String("spec", id), zap.Error(err))
	}
	return spec, err
}

// New returns a dispatcher and registers its services. It starts nothing.
func New(env daemon.Env, cfg Config) (*Daemon, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("settings of the dispatcher: %w", err)
	}
	d := &Daemon{log: env.Logger, tables: state.NewTables(), owned: newOwnedShards(), calls: calls.NewGroup(), keys: cfg.Keys}
	t := d.tables
	d.networks = networks.New(t, d.owned.networksChanged)
	var err error
	d.store, err = store.New(
		store.Options{KV: env.KV, Prefix: env.Prefix, Logger: env.Logger, Metrics: env.Metrics},
		t.Services, t.Specs, t.Nodes, t.Clusters, t.Tasks, t.Assignments, t.NodeStates, t.Statuses,
		t.Networks, t.NetworkStates, t.Blocks, t.Endpoints, t.Rollouts, t.Configs, t.Blobs, t.Secrets, t.SealedBlobs,
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
		return nil, fmt.Errorf("divide shards: %w", err)
	}
	d.directory = d.roster.Directory(Subsystem)
	if err := d.serve(env, cfg); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return d, nil
}

// serve creates the parts and registers the services. Its errors are those of the
// metrics.
func (d *Daemon) serve(env daemon.Env, cfg Config) error {
	var err error
	if d.statuses, err = statuses.NewMetrics(env.Metrics); err != nil {
		return err
	}
	transitions, err := liveness.NewMetrics(env.Metrics)
	if err != nil {
		return err
	}
	d.nodes = liveness.Config{
		Timeouts: cfg.timeouts(), Store: d.store, Tables: d.tables, Schemas: payload.NewSchemas(),
		Pauses:  liveness.NewPauseDetector(env.Logger),
		Lag:     liveness.NewHeartbeatLag(env.Logger),
		Periods: liveness.NewPeriods(cfg.HeartbeatPeriod, cfg.CrowdedNodes, d.store, d.tables),
		Metrics: transitions, Logger: env.Logger,
	}
	broker, err := logs.NewBroker(logs.Config{
		QueueBytes: cfg.LogQueueBytes, Readers: cfg.LogReaders, Calls: d.calls, Metrics: env.Metrics,
	})
	if err != nil {
		return err
	}
	prober := probes.NewBroker(d.calls)
	sent, err := session.NewMetrics(env.Metrics, d.statuses)
	if err != nil {
		return err
	}
	d.sessions = session.NewServer(session.Config{
		HelloTimeout: cfg.HelloTimeout, OwnerWait: cfg.OwnerWait, SettleTimeout: cfg.SettleTimeout,
		Limits:   assignments.Limits{Objects: cfg.MessageTasks, Bytes: cfg.MessageBytes},
		Instance: env.Member.Instance, Shards: d.owned, Directory: d.directory, Store: d.store, Tables: d.tables, Networks: d.networks, Secrets: d,
		Logs: broker, Probes: prober, Calls: d.calls, Guard: env.Guard, Tracer: env.Tracer, Metrics: sent, Logger: env.Logger,
	})
	if env.Metrics != nil {
		if err := env.Metrics.Register(newCollector(d.owned, d.nodes)); err != nil {
			return err
		}
	}
	dispatcherv1.RegisterDispatcherServiceServer(env.Server, d.sessions)
	dispatcherv1.RegisterLogBrokerServiceServer(env.Server, broker)
	dispatcherv1.RegisterProbeServiceServer(env.Server, prober)
	return nil
}

// View returns the daemon's view of the store.
func (d *Daemon) View() daemon.View { return d.store }

// Run works until ctx ends. Then it redirects its workers, gives its shards away,
// and returns when every call has ended.
func (d *Daemon) Run(ctx context.Context) error {
	// The store outlives the work, which reads it to the last.
	return daemon.Runner{
		{
			{Name: "store", Run: d.store.Run},
			{Name: "roster", Run: d.roster.Run},
			{Name: "directory", Run: d.directory.Run},
		},
		{{Name: "dispatch", Run: func(ctx context.Context) error {
			defer d.calls.Close()
			return d.work(ctx)
		}}},
	}.Run(ctx)
}

func (d *Daemon) work(ctx context.Context) error {
	if err := errors.Join(d.store.Ready(ctx), d.directory.Ready(ctx)); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("load the store: %w", err)
	}
	d.follower = newFollower(d.store, d.tables, d.owned, d.networks)
	return daemon.RunTasks(ctx,
		daemon.Task{Name: "detect pauses", Run: d.nodes.Pauses.Run},
		daemon.Task{Name: "follow the store", Run: d.follower.run},
		daemon.Task{Name: "follow dispatchers", Run: d.followDispatchers},
		daemon.Task{Name: "own shards", Run: func(ctx context.Context) error { return d.manager.Run(ctx, d.ownShard) }},
	)
}

// ownShard works on a shard while this replica owns it.
func (d *Daemon) ownShard(ctx context.Context, number int) error {
	// A worker must not be sent less than the last owner of the shard sent it,
	// because it ends tasks that are missing.
	t := d.tables
	if err := d.store.Sync(ctx, t.Services, t.Specs, t.Nodes, t.Tasks, t.Assignments, t.NodeStates, t.Statuses,
		t.Networks, t.NetworkStates, t.Blocks, t.Endpoints, t.Rollouts, t.Configs, t.Blobs, t.Secrets, t.SealedBlobs); err != nil {
		return fmt.Errorf("catch up with the last owner: %w", err)
	}
	d.follower.catchUp()
	ownership := liveness.NewOwnership(number, d.manager, d.nodes.Pauses, d.log)
	writer := statuses.NewWriter(statuses.Config{
		Store: d.store, Tables: t, Confirmed: ownership.Confirmed, Metrics: d.statuses, Logger: d.log,
	})
	s := &shard{liveness.NewTracker(d.nodes, number, ownership, writer), writer}
	// From here on changes reach the shard, so that none is missed between the
	// snapshot that it loads and the next.
	d.owned.set(number, s)
	defer func() { s.Close(session.ErrShardLost, d.sessions.Redirect(number)) }()
	defer d.owned.set(number, nil)
	s.Load(d.store.Snapshot())
	return daemon.RunTasks(ctx,
		daemon.Task{Name: "track nodes", Run: s.Tracker.Run},
		daemon.Task{Name: "write statuses", Run: s.Writer.Run},
	)
}
