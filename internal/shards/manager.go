package shards

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/kv"
)

// DefaultShards is the number of shards of a subsystem whose work is cut as
// the store's tables are.
const DefaultShards = 16

// releaseTimeout bounds what a leaving replica does for the others: after it
// they learn from its session's end.
const releaseTimeout = 2 * time.Second

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
	// Session opens a session. It is called anew when a session is lost; the
	// manager closes what it was given.
	Session func(context.Context) (kv.Session, error)
	Logger  *zap.Logger
	// Registerer takes the gauge of owned shards, if given.
	Registerer prometheus.Registerer
}

// Manager takes part in sharing out the shards of one subsystem.
type Manager struct {
	cfg   Config
	owned prometheus.Gauge

	mu    sync.Mutex
	roles map[int]*role
}

// role is a shard that is held, and the function that works on it.
type role struct {
	shard  int
	cancel context.CancelFunc
	// leaving is set when the shard is to be given up.
	leaving bool
	// done is closed when the function has returned.
	done chan struct{}
	err  error
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
		if !r.leaving {
			owned = append(owned, shard)
		}
	}
	slices.Sort(owned)
	return owned
}

// Run takes part until ctx ends. For each shard that this replica gets it calls
// work in a goroutine of its own, whose context ends when the shard is to be
// given up or was lost; the lock is released when work has returned, and Run
// returns when all have, and other replicas have been told. Work that returns
// while it still holds its shard is logged and begun again after a while.
func (m *Manager) Run(ctx context.Context, work func(ctx context.Context, shard int) error) error {
	retry := newBackoff(50*time.Millisecond, 2*time.Second)
	for ctx.Err() == nil {
		session, err := m.cfg.Session(ctx)
		if err != nil {
			if ctx.Err() == nil {
				m.cfg.Logger.Warn("session cannot be opened", zap.Error(err))
				retry.wait(ctx)
			}
			continue
		}
		began := time.Now()
		t := &term{m: m, session: session, work: work, log: m.cfg.Logger, wake: make(chan struct{}, 1)}
		t.run(ctx)
		if ctx.Err() == nil {
			m.cfg.Logger.Warn("session was lost")
			if time.Since(began) > time.Minute {
				retry.reset()
			}
			retry.wait(ctx)
		}
	}
	return nil
}

// term is the time of one session.
type term struct {
	m       *Manager
	session kv.Session
	work    func(context.Context, int) error
	log     *zap.Logger

	mu sync.Mutex
	// members and locks are what was last seen; nil until then.
	members map[string]Member
	locks   map[string]string // shard, as its key has it, to session
	// wake says that there is something new to look at.
	wake chan struct{}

	joined bool
	// notBefore holds off shards whose work has just failed.
	notBefore map[int]time.Time
}

func (t *term) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// run joins, follows what the others do, and leaves when ctx ends or the
// session is lost.
func (t *term) run(ctx context.Context) {
	inner, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	members, locks := membersPrefix(t.m.cfg.Prefix, t.m.cfg.Subsystem), locksPrefix(t.m.cfg.Prefix, t.m.cfg.Subsystem)
	wg.Go(func() {
		follow(inner, t.m.cfg.KV, members, t.log, func(pairs []kv.Pair) {
			seen := decodeMembers(pairs, members, t.log)
			t.mu.Lock()
			t.members = seen
			t.mu.Unlock()
			t.poke()
		})
	})
	wg.Go(func() {
		follow(inner, t.m.cfg.KV, locks, t.log, func(pairs []kv.Pair) {
			seen := make(map[string]string, len(pairs))
			for _, p := range pairs {
				if p.Session != "" {
					seen[p.Key[len(locks):]] = p.Session
				}
			}
			t.mu.Lock()
			t.locks = seen
			t.mu.Unlock()
			t.poke()
		})
	})
	t.loop(ctx)
	t.leave(ctx)
	cancel()
	wg.Wait()
}

// loop looks and acts until ctx ends or the session is lost.
func (t *term) loop(ctx context.Context) {
	t.notBefore = map[int]time.Time{}
	timer := time.NewTimer(0)
	defer timer.Stop()
	soon := newBackoff(20*time.Millisecond, 500*time.Millisecond)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.session.Lost():
			return
		case <-t.wake:
			soon.reset()
		case <-timer.C:
		}
		if t.look(ctx) {
			timer.Stop()
		} else {
			// A lock that is free may be refused for a moment.
			timer.Reset(soon.pause())
		}
	}
}

// look compares what this replica holds with what it should hold, acts, and
// reports whether nothing is left to try again.
func (t *term) look(ctx context.Context) bool {
	if !t.joined {
		value, err := encodeMember(t.m.cfg.Member)
		if err == nil {
			t.joined, err = t.session.Acquire(ctx, membersPrefix(t.m.cfg.Prefix, t.m.cfg.Subsystem)+t.m.cfg.Member.Instance, value)
		}
		if err != nil && ctx.Err() == nil {
			t.log.Warn("cannot join", zap.Error(err))
		}
		if !t.joined {
			return false
		}
	}
	t.mu.Lock()
	members, locks := t.members, t.locks
	t.mu.Unlock()
	if members == nil || locks == nil {
		return true // the followers will wake us
	}
	names := make([]string, 0, len(members)+1)
	for name := range members {
		names = append(names, name)
	}
	if _, ok := members[t.m.cfg.Member.Instance]; !ok {
		// Joined a moment ago, and the list is older.
		names = append(names, t.m.cfg.Member.Instance)
	}
	settled := true
	for shard, name := range Assign(names, t.m.cfg.Shards) {
		mine := name == t.m.cfg.Member.Instance
		if !t.settle(ctx, shard, mine, locks[strconv.Itoa(shard)]) {
			settled = false
		}
	}
	return settled
}

// settle brings one shard to where it should be, and reports whether there is
// nothing to try again before something changes.
func (t *term) settle(ctx context.Context, shard int, mine bool, holder string) bool {
	t.m.mu.Lock()
	r := t.m.roles[shard]
	t.m.mu.Unlock()
	switch {
	case r != nil && isDone(r):
		return t.ended(ctx, r)
	case r != nil && !mine && !r.leaving:
		t.log.Info("shard is handed over", zap.Int("shard", shard))
		t.m.mu.Lock()
		r.leaving = true
		t.m.mu.Unlock()
		t.count()
		r.cancel()
		return true
	case r != nil && holder != "" && holder != t.session.ID() && !r.leaving:
		// Somebody else holds what this replica thinks is its own: the session
		// has ended without a word.
		t.log.Warn("shard was lost", zap.Int("shard", shard))
		t.m.mu.Lock()
		r.leaving = true
		t.m.mu.Unlock()
		t.count()
		r.cancel()
		return true
	case r == nil && mine && (holder == "" || holder == t.session.ID()):
		if time.Now().Before(t.notBefore[shard]) {
			return false
		}
		return t.take(ctx, shard)
	default:
		return true
	}
}

func isDone(r *role) bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// take acquires a shard's lock and begins to work on it.
func (t *term) take(ctx context.Context, shard int) bool {
	value, err := encodeMember(t.m.cfg.Member)
	ok := false
	if err == nil {
		ok, err = t.session.Acquire(ctx, t.lockKey(shard), value)
	}
	if err != nil {
		if ctx.Err() == nil {
			t.log.Warn("lock cannot be acquired", zap.Int("shard", shard), zap.Error(err))
		}
		return false
	}
	if !ok {
		return false
	}
	inner, cancel := context.WithCancel(ctx)
	r := &role{shard: shard, cancel: cancel, done: make(chan struct{})}
	t.m.mu.Lock()
	t.m.roles[shard] = r
	t.m.mu.Unlock()
	t.count()
	t.log.Debug("shard is ours", zap.Int("shard", shard))
	// Its owner is leave, which waits for done.
	go func() {
		defer t.poke()
		defer close(r.done)
		r.err = t.work(inner, shard)
	}()
	return true
}

// ended releases the lock of a role whose function has returned.
func (t *term) ended(ctx context.Context, r *role) bool {
	r.cancel()
	if !r.leaving {
		t.log.Error("work on a shard ended and is begun again", zap.Int("shard", r.shard), zap.Error(r.err))
		t.notBefore[r.shard] = time.Now().Add(time.Second)
	}
	if err := t.session.Release(ctx, t.lockKey(r.shard)); err != nil {
		if ctx.Err() == nil {
			t.log.Warn("lock cannot be released", zap.Int("shard", r.shard), zap.Error(err))
		}
		return false
	}
	t.m.mu.Lock()
	delete(t.m.roles, r.shard)
	t.m.mu.Unlock()
	t.count()
	return r.leaving
}

// leave ends all roles and gives everything back.
func (t *term) leave(ctx context.Context) {
	// What is given back is given back although ctx has ended.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	if t.joined {
		// Leaving the members first lets the others wait for the locks already.
		if err := t.session.Release(ctx, membersPrefix(t.m.cfg.Prefix, t.m.cfg.Subsystem)+t.m.cfg.Member.Instance); err != nil {
			t.log.Debug("membership goes with the session", zap.Error(err))
		}
	}
	t.m.mu.Lock()
	roles := make([]*role, 0, len(t.m.roles))
	for _, r := range t.m.roles {
		r.leaving = true
		roles = append(roles, r)
	}
	t.m.mu.Unlock()
	for _, r := range roles {
		r.cancel()
	}
	var wg sync.WaitGroup
	for _, r := range roles {
		wg.Go(func() {
			<-r.done
			if err := t.session.Release(ctx, t.lockKey(r.shard)); err != nil {
				t.log.Debug("lock goes with the session", zap.Int("shard", r.shard), zap.Error(err))
			}
		})
	}
	wg.Wait()
	t.m.mu.Lock()
	clear(t.m.roles)
	t.m.mu.Unlock()
	t.count()
	if err := t.session.Close(ctx); err != nil {
		t.log.Debug("session ends by itself", zap.Error(err))
	}
}

func (t *term) lockKey(shard int) string {
	return locksPrefix(t.m.cfg.Prefix, t.m.cfg.Subsystem) + strconv.Itoa(shard)
}

func (t *term) count() { t.m.owned.Set(float64(len(t.m.Owned()))) }
