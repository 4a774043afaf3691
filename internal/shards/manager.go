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

// Config says what to share, and with whom.
type Config struct {
	KV kv.KV
	// Prefix is that of all of the cluster's keys.
	Prefix string
	// Subsystem names the work: "scheduler".
	Subsystem string
	// Shards is the number of shards. Default DefaultShards. One shard makes it
	// a plain leader election.
	Shards int
	// Member is this replica.
	Member Member
	// Session opens a session. It is called again when a session is lost; the
	// manager closes what it was given.
	Session func(context.Context) (kv.Session, error)
	// Roster, if given, knows the other replicas. It must include the subsystem,
	// and run while the manager does.
	Roster *Roster
	Logger *zap.Logger
	// Registerer takes the gauge of owned shards, if given.
	Registerer prometheus.Registerer
}

// Manager takes part in sharing out the shards of one subsystem.
type Manager struct {
	cfg      Config
	owned    prometheus.Gauge
	failures failureLog

	mu    sync.Mutex
	roles map[int]*role
}

// New returns a manager that has not joined yet.
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

// Owned returns the shards that this replica holds and has not begun to give
// up, in order.
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

// Holds asks the store whether this replica still holds a shard's lock. One that
// did not run for a while works on its shards until it hears that its session has
// ended: what it is about to do then may be another's to do.
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

// role returns the role of a shard, nil if this replica does not hold it.
func (m *Manager) role(shard int) *role {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.roles[shard]
}

// Run takes part until ctx ends. For each shard that this replica gets it calls
// work in a goroutine of its own, whose context ends when the shard must be
// given up or was lost; the lock is released when work has returned, and Run
// returns when all have, and other replicas have been told. Work that returns
// while it still holds its shard is logged and begun again after a while.
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
