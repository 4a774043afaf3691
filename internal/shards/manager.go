package shards

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/store"
)

// DefaultShards is the number of shards of a subsystem that works on the shards
// of the store's tables.
const DefaultShards = store.Shards

// Config configures a Manager.
type Config struct {
	KV kv.KV
	// Prefix is the prefix of all keys of the cluster.
	Prefix string
	// Subsystem names the work: "scheduler".
	Subsystem string
	// Shards is the number of shards; 0 means DefaultShards. With one shard, the
	// manager is a plain leader election.
	Shards int
	// Member is this replica.
	Member Member
	// Session opens a session. It is called again after a session was lost. The
	// manager closes the sessions.
	Session func(context.Context) (kv.Session, error)
	// Roster is optional. If given, it must include the subsystem, and run while the
	// manager runs.
	Roster *Roster
	Logger *zap.Logger
	// Registerer is optional. It gets the gauge of owned shards.
	Registerer prometheus.Registerer
}

// Manager acquires this replica's share of the shards of one subsystem.
type Manager struct {
	cfg      Config
	owned    prometheus.Gauge
	failures failureLog

	mu    sync.Mutex
	roles map[int]*role
}

// New returns a manager. Run makes it join.
func New(cfg Config) (*Manager, error) {
	if cfg.Shards == 0 {
		cfg.Shards = DefaultShards
	}
	var faults []error
	for name, missing := range map[string]bool{
		"KV": cfg.KV == nil, "Prefix": cfg.Prefix == "", "Subsystem": cfg.Subsystem == "",
		"Member.Instance": cfg.Member.Instance == "", "Session": cfg.Session == nil, "Logger": cfg.Logger == nil,
	} {
		if missing {
			faults = append(faults, fmt.Errorf("shards: config field %s is missing", name))
		}
	}
	if cfg.Shards < 1 {
		faults = append(faults, fmt.Errorf("shards: config field Shards is %d, want at least 1", cfg.Shards))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	m := &Manager{cfg: cfg, roles: map[int]*role{}}
	m.cfg.Logger = cfg.Logger.With(zap.String("subsystem", cfg.Subsystem))
	m.failures.log = m.cfg.Logger
	m.owned = prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "muster_shards_owned",
		Help:        "Shards of the subsystem that this replica works on.",
		ConstLabels: prometheus.Labels{"subsystem": cfg.Subsystem},
	})
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(m.owned); err != nil {
			return nil, fmt.Errorf("register metrics of shards: %w", err)
		}
	}
	return m, nil
}

// Owned returns the shards that this replica holds and need not give up, sorted.
func (m *Manager) Owned() []int {
	m.mu.Lock()
	defer m.mu.Unlock()
	var owned []int
	for shard, r := range m.roles {
		if !r.revoked {
			owned = append(owned, shard)
		}
	}
	slices.Sort(owned)
	return owned
}

// Holds asks the store whether this replica still holds a shard's lock. A process
// that was paused does not know yet that its session has expired. Until it learns
// this, it works on shards that another replica may own.
func (m *Manager) Holds(ctx context.Context, shard int) (bool, error) {
	r := m.role(shard)
	if r == nil {
		return false, nil
	}
	p, err := m.cfg.KV.Get(ctx, lockKey(m.cfg.Prefix, m.cfg.Subsystem, shard))
	switch {
	case errors.Is(err, kv.ErrNotFound):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read the lock of shard %d: %w", shard, err)
	}
	return p.Session == r.session, nil
}

// role returns the role of a shard, or nil if this replica does not hold the shard.
func (m *Manager) role(shard int) *role {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.roles[shard]
}

// Run joins the subsystem and works on this replica's shards until ctx ends. For each
// shard it calls work in a new goroutine. The context of work ends when the shard was
// lost or must be given up. When work has returned, its lock is released. Run returns
// after all calls of work have returned and this replica has left. If work returns
// while the replica still owns the shard, the error is logged and work is called again
// after a pause.
func (m *Manager) Run(ctx context.Context, work func(ctx context.Context, shard int) error) error {
	retry := backoff.New(50*time.Millisecond, 2*time.Second)
	for ctx.Err() == nil {
		session, err := m.cfg.Session(ctx)
		if err != nil {
			if ctx.Err() == nil {
				m.failures.failed("open a session", err)
				_ = retry.Wait(ctx)
			}
			continue
		}
		began := time.Now()
		t := &term{m: m, session: session, work: work, log: m.cfg.Logger, wake: make(chan struct{}, 1)}
		t.run(ctx)
		if ctx.Err() == nil {
			m.cfg.Logger.Warn("session was lost")
			if time.Since(began) > time.Minute {
				retry.Reset()
			}
			_ = retry.Wait(ctx)
		}
	}
	return nil
}
