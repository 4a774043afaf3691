// Package apid is the daemon of the control API. It puts together the packages below
// it: control serves the API, objects holds what it shows, authority the certificate
// authority, tokens the API tokens, sweep removes what nothing needs, status says how
// the cluster's parts do, logs fetches the output of tasks, and rest serves it all over
// HTTP. Any replica serves any request, because compare-and-set settles writes. It never
// places, starts or stops anything.
package apid

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	cav1 "github.com/musterhq/muster/api/muster/ca/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/authority"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/control"
	"github.com/musterhq/muster/apid/logs"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/probes"
	"github.com/musterhq/muster/apid/rest"
	"github.com/musterhq/muster/apid/sealing"
	clusterstatus "github.com/musterhq/muster/apid/status"
	"github.com/musterhq/muster/apid/sweep"
	"github.com/musterhq/muster/apid/tokens"
	"github.com/musterhq/muster/internal/ca"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/limit"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

const (
	// writeTimeout bounds a request's wait for the store if the client sets no deadline
	// of its own.
	writeTimeout = 10 * time.Second
	// readyTimeout bounds how long a request waits for a replica that is still loading
	// its tables.
	readyTimeout = 5 * time.Second
	// bookmark is how often a quiet watch is sent a fresh resume token.
	bookmark = 15 * time.Second
	// tombstoneGrace is how long it is remembered that a node was removed, so that its
	// worker cannot come back under the same id.
	tombstoneGrace = 24 * time.Hour
)

// Config is what can be set.
type Config struct {
	// Sweep is how often records that nothing refers to are looked for.
	Sweep time.Duration
	// SpecGrace is how long a task spec or a blob is kept that nothing refers to.
	SpecGrace time.Duration
	// MaxConfigBytes bounds the data of all configs of the cluster together, that of all
	// secrets, and the revisions of all stacks; 0 means no limit.
	MaxConfigBytes uint64
	// RotationLeast is how long a rotation of the authority's root takes at least,
	// so that daemons that happen to be off for a while take part in it.
	RotationLeast time.Duration
	// Authority is the cluster's own, run by the caller. Nil: certificates come
	// from elsewhere.
	Authority *ca.Authority
	// Keys are the cluster's, which seal secrets and stacks. Nil: there are none, and both
	// are refused.
	Keys *seal.Keyring
	// Limits bound how often a client may call over REST; the gRPC server has them
	// already. Nil: there are none.
	Limits *limit.Limits

	// remember is how many changes are kept for watches that resume or lag: of the
	// last five seconds up to four times as many, and one for each task in any case.
	// A change takes some 500 bytes while the objects that it tells of live, and up to
	// a few kilobytes when they are gone.
	remember int
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Sweep:          30 * time.Second,
		SpecGrace:      time.Minute,
		MaxConfigBytes: defaults.ConfigBytes,
		RotationLeast:  10 * time.Minute,
		remember:       32_768,
	}
}

// AddFlags adds the settings that operators have reason to change. Their
// defaults are the values that c holds.
func (c *Config) AddFlags(fs *pflag.FlagSet) {
	fs.DurationVar(&c.Sweep, "sweep-interval", c.Sweep, "time between searches for records that are no longer referred to")
	fs.DurationVar(&c.SpecGrace, "spec-grace", c.SpecGrace, "time for which a task spec, or data of a config or secret, without references is kept")
	fs.Uint64Var(&c.MaxConfigBytes, "max-config-bytes", c.MaxConfigBytes, "maximum total size of all configs in bytes, of all secrets, and of all revisions of stacks; set it to the same value on each apid; 0: no limit")
	fs.DurationVar(&c.RotationLeast, "root-rotation-least", c.RotationLeast, "minimum time for which the old root stays trusted after a rotation, for daemons that are off")
}

// Validate names all settings that are wrong.
func (c Config) Validate() error {
	var faults []error
	for _, f := range []struct {
		name string
		d    time.Duration
	}{
		{"Sweep", c.Sweep}, {"SpecGrace", c.SpecGrace}, {"RotationLeast", c.RotationLeast},
	} {
		if f.d <= 0 {
			faults = append(faults, fmt.Errorf("apid: config field %s is %v, want more than 0", f.name, f.d))
		}
	}
	return errors.Join(faults...)
}

// sweepSubsystem is the work of which one replica has the lock. All replicas are its
// members, so it is also how they are found.
const sweepSubsystem = "apid"

// dispatcherSubsystem is that of the dispatchers, which own nodes.
const dispatcherSubsystem = "dispatcher"

// Daemon is one replica of apid.
type Daemon struct {
	store     *store.Store
	view      *objects.View
	backend   *backend.Backend
	logs      *logs.Broker
	authority *authority.Authority
	sweeper   *sweep.Sweeper
	// sweeping gives one replica the sweep.
	sweeping *shards.Manager
	// roster is shared by the directories and sweeping.
	roster *shards.Roster
	// subsystems are all of them, in the order of the loop.
	subsystems []control.Subsystem
	handler    http.Handler
}

// New returns a replica that serves on the server of env once it runs.
func New(env daemon.Env, cfg Config) (*Daemon, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	tables := state.NewTables()
	st, err := store.New(store.Options{KV: env.KV, Prefix: env.Prefix, Logger: env.Logger, Metrics: env.Metrics},
		append(objects.Tables(tables), tables.Tokens)...)
	if err != nil {
		return nil, fmt.Errorf("apid: %w", err)
	}
	watchers := prometheus.NewGauge(prometheus.GaugeOpts{Name: "muster_apid_watchers", Help: "Watches that are open."})
	if err := env.Metrics.Register(watchers); err != nil {
		return nil, fmt.Errorf("apid: register metrics: %w", err)
	}
	d := &Daemon{store: st, view: objects.New(st, tables, cfg.Keys, cfg.remember)}
	d.backend = backend.New(backend.Options{
		Store: st, Tables: tables, View: d.view, Log: env.Logger, WriteTimeout: writeTimeout, ReadyTimeout: readyTimeout,
	})
	d.roster = shards.NewRoster(env.KV, env.Prefix, env.Logger)
	d.sweeping, err = shards.New(shards.Config{
		Roster: d.roster,
		KV:     env.KV, Prefix: env.Prefix, Subsystem: sweepSubsystem, Shards: 1, Member: env.Member,
		Session: env.Session, Logger: env.Logger, Registerer: env.Metrics,
	})
	if err != nil {
		return nil, fmt.Errorf("apid: %w", err)
	}
	dispatchers := d.followSubsystems()
	looker := &clusterstatus.Looker{
		KV: env.KV, Prefix: env.Prefix, Newest: st.LeaderSequences, LastKnown: d.lastKnown, StaleFor: st.Staleness, Dial: env.Dial, Log: env.Logger,
	}
	owner := func(node string) (string, bool) {
		m, ok := dispatchers.Owner(store.ShardOf(node))
		return m.Address, ok
	}
	d.logs = logs.New(d.view, owner, env.Dial)
	var authorityKey func(ctx context.Context) (string, error)
	if cfg.Authority != nil {
		authorityKey = cfg.Authority.SealedWith
	}
	sealer := sealing.New(d.backend, cfg.Keys, authorityKey)
	d.authority = authority.New(d.backend, authority.Options{
		Own: cfg.Authority, Guard: env.Guard, Looker: looker, Sealer: sealer, RotationLeast: cfg.RotationLeast,
	})
	d.sweeper = sweep.New(d.backend, sweep.Options{
		Interval: cfg.Sweep, SpecGrace: cfg.SpecGrace, TombstoneGrace: tombstoneGrace, Also: d.authority.EndRotation,
	})
	apiTokens := tokens.New(d.backend)
	server := control.New(d.backend, control.Options{
		Member: env.Member, Subsystems: d.subsystems, Unsharded: sweepSubsystem, Looker: looker, Logs: d.logs, Prober: probes.NewProber(owner, env.Dial),
		Tokens: apiTokens, Authority: d.authority, Sealer: sealer, Watchers: watchers, Bookmark: bookmark, MaxConfigBytes: cfg.MaxConfigBytes,
	})
	musterv1.RegisterControlServiceServer(env.Server, server)
	cav1.RegisterAuthorityServiceServer(env.Server, d.authority.Service())
	env.Guard.AcceptTokens(apiTokens.Recognise)
	d.handler, err = rest.New(server, d.Healthy, env.Guard, cfg.Limits, env.Logger)
	if err != nil {
		return nil, fmt.Errorf("apid: %w", err)
	}
	d.handler = env.Tracer.Handler(d.handler)
	return d, nil
}

// followSubsystems follows who owns the shards of each subsystem, and returns the
// directory of dispatchers.
func (d *Daemon) followSubsystems() (dispatchers *shards.Directory) {
	for _, s := range clusterstatus.Subsystems() {
		directory := d.roster.Directory(s.Name)
		d.subsystems = append(d.subsystems, control.Subsystem{Name: s.Name, Directory: directory})
		if s.Name == dispatcherSubsystem {
			dispatchers = directory
		}
	}
	return dispatchers
}

// lastKnown is the ownership of all subsystems as the directories have it.
func (d *Daemon) lastKnown() map[string]shards.Ownership {
	all := map[string]shards.Ownership{}
	for _, s := range d.subsystems {
		all[s.Name] = s.Ownership()
	}
	return all
}

// ClusterKeys implements daemon.KeyHolder.
func (d *Daemon) ClusterKeys() []string { return d.authority.KeyNames() }

// View is what the daemon sees of the store.
func (d *Daemon) View() daemon.View { return d.store }

// Run serves until ctx ends. Then it refuses what is new, ends streams, and
// returns when the writes under way have their answers.
func (d *Daemon) Run(ctx context.Context) error {
	defer d.backend.Stop()
	// The store and the view outlive the work: pending writes need them.
	return daemon.Runner{
		{{Name: "store", Run: d.store.Run}, {Name: "view", Run: d.view.Run}},
		{{Name: "serve", Run: func(ctx context.Context) error {
			defer d.backend.Finish()
			return d.serve(ctx)
		}}},
	}.Run(ctx)
}

func (d *Daemon) serve(ctx context.Context) error {
	tasks := []daemon.Task{
		{Name: "logs", Run: d.logs.Run},
		{Name: "roster", Run: d.roster.Run},
		{Name: "sweep", Run: func(ctx context.Context) error {
			return d.sweeping.Run(ctx, func(ctx context.Context, _ int) error { return d.sweeper.Run(ctx) })
		}},
		{Name: "stop streams", Run: func(ctx context.Context) error {
			<-ctx.Done()
			d.backend.Stop()
			return nil
		}},
	}
	for _, s := range d.subsystems {
		tasks = append(tasks, daemon.Task{Name: "directory " + s.Name, Run: s.Run})
	}
	return daemon.RunTasks(ctx, tasks...)
}

// Handler serves REST: the routes of the contract, /openapi.json and /healthz.
func (d *Daemon) Handler() http.Handler { return d.handler }

// Healthy says whether this replica can do its work, and if not, why.
func (d *Daemon) Healthy(context.Context) error { return daemon.Healthy(d.store) }
