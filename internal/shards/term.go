package shards

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/kv"
)

// releaseTimeout bounds how long a leaving replica tries to release its locks. They
// are released with its session otherwise.
const releaseTimeout = 2 * time.Second

// role is a shard that this replica holds, with the call that works on it.
type role struct {
	shard int
	// session is the ID of the session that holds the lock.
	session string
	cancel  context.CancelFunc
	// revoked is set once the replica must give up the shard.
	revoked bool
	// done is closed when the call has returned.
	done chan struct{}
	err  error
}

// term is the replica's participation during one session.
type term struct {
	m       *Manager
	session kv.Session
	work    func(context.Context, int) error
	log     *zap.Logger

	mu sync.Mutex
	// members and locks are the lists read last; nil until the first read.
	members map[string]Member
	locks   map[string]string // session by shard, as written in the key
	// notBefore delays shards whose work has just failed.
	notBefore map[int]time.Time
	// wake holds a token if members, locks or roles have changed.
	wake chan struct{}

	joined bool
}

func (t *term) notify() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// run joins, reconciles the replica's shards after each change, and leaves when ctx
// ends or the session is lost.
func (t *term) run(ctx context.Context) {
	inner, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	cfg := t.m.cfg
	roster := cfg.Roster
	if roster == nil {
		roster = NewRoster(cfg.KV, cfg.Prefix, t.log, cfg.Subsystem)
		wg.Go(func() { _ = roster.Run(inner) })
	}
	members, locks := membersPrefix(cfg.Prefix, cfg.Subsystem), locksPrefix(cfg.Prefix, cfg.Subsystem)
	defer roster.members.subscribe(members, func(pairs []kv.Pair) {
		seen := decode[Member](pairs, members, t.log)
		t.mu.Lock()
		t.members = seen
		t.mu.Unlock()
		t.notify()
	})()
	defer roster.locks.subscribe(locks, func(pairs []kv.Pair) {
		seen := make(map[string]string, len(pairs))
		for _, p := range pairs {
			if p.Session != "" {
				seen[p.Key[len(locks):]] = p.Session
			}
		}
		t.mu.Lock()
		t.locks = seen
		t.mu.Unlock()
		t.notify()
	})()
	t.loop(ctx)
	t.leave(ctx)
	cancel()
	wg.Wait()
}

// loop reconciles after each change until ctx ends or the session is lost.
func (t *term) loop(ctx context.Context) {
	t.notBefore = map[int]time.Time{}
	timer := time.NewTimer(0)
	defer timer.Stop()
	soon := backoff.New(20*time.Millisecond, 500*time.Millisecond)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.session.Lost():
			return
		case <-t.wake:
			soon.Reset()
		case <-timer.C:
		}
		failures := t.m.failures.count()
		if t.reconcile(ctx) {
			timer.Stop()
		} else {
			// The store may refuse a free lock for a moment.
			timer.Reset(soon.Next())
		}
		if t.m.failures.count() == failures && ctx.Err() == nil {
			t.m.failures.recovered()
		}
	}
}

// reconcile acquires and releases locks until this replica holds the shards that it
// should hold. It reports false if it must be called again without a change.
func (t *term) reconcile(ctx context.Context) bool {
	if !t.joined {
		value, err := encode(t.m.cfg.Member)
		if err == nil {
			t.joined, err = t.session.Acquire(ctx, t.memberKey(), value)
		}
		if err != nil && ctx.Err() == nil {
			t.m.failures.failed("join", err)
		}
		if !t.joined {
			return false
		}
	}
	t.mu.Lock()
	members, locks := t.members, t.locks
	t.mu.Unlock()
	if members == nil || locks == nil {
		return true // the subscriptions will wake the loop
	}
	names := make([]string, 0, len(members)+1)
	for name := range members {
		names = append(names, name)
	}
	if _, ok := members[t.m.cfg.Member.Instance]; !ok {
		// The list is older than the join, or the record was removed. Joining
		// again does no harm.
		names = append(names, t.m.cfg.Member.Instance)
		t.joined = false
	}
	settled := make([]bool, t.m.cfg.Shards)
	// In parallel, all of them take one round trip to the store.
	var wg sync.WaitGroup
	for shard, name := range Assign(names, t.m.cfg.Shards) {
		wg.Go(func() {
			settled[shard] = t.reconcileShard(ctx, shard, name == t.m.cfg.Member.Instance, locks[strconv.Itoa(shard)])
		})
	}
	wg.Wait()
	return t.joined && !slices.Contains(settled, false)
}

// reconcileShard acquires or releases one shard as needed. It reports false if it must
// be called again without a change.
func (t *term) reconcileShard(ctx context.Context, shard int, mine bool, holder string) bool {
	r := t.m.role(shard)
	switch {
	case r != nil && isDone(r):
		return t.finishRole(ctx, r)
	case r != nil && !mine && !r.revoked:
		t.log.Info("handing shard over", zap.Int("shard", shard))
		t.revoke(r)
		return true
	case r != nil && holder != "" && holder != t.session.ID() && !r.revoked:
		// Another replica holds the lock, so this session has ended without a
		// notification.
		t.log.Warn("lost shard", zap.Int("shard", shard))
		t.revoke(r)
		return true
	case r == nil && mine && (holder == "" || holder == t.session.ID()):
		t.mu.Lock()
		wait := time.Now().Before(t.notBefore[shard])
		t.mu.Unlock()
		return !wait && t.acquire(ctx, shard)
	case r == nil && !mine && holder == t.session.ID():
		// The answer to Acquire was lost, and the shard has a new owner by now.
		return t.release(ctx, shard)
	default:
		return true
	}
}

// revoke stops a role. Its lock is released after its call has returned.
func (t *term) revoke(r *role) {
	t.m.mu.Lock()
	r.revoked = true
	t.m.mu.Unlock()
	t.count()
	r.cancel()
}

func isDone(r *role) bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// acquire acquires a shard's lock and starts work on the shard.
func (t *term) acquire(ctx context.Context, shard int) bool {
	value, err := encode(Lease{Member: t.m.cfg.Member, Since: time.Now()})
	ok := false
	if err == nil {
		ok, err = t.session.Acquire(ctx, t.lockKey(shard), value)
	}
	if err != nil {
		if ctx.Err() == nil {
			t.m.failures.failed("acquire a lock", err, zap.Int("shard", shard))
		}
		return false
	}
	if !ok {
		return false
	}
	inner, cancel := context.WithCancel(ctx)
	r := &role{shard: shard, session: t.session.ID(), cancel: cancel, done: make(chan struct{})}
	t.m.mu.Lock()
	t.m.roles[shard] = r
	t.m.mu.Unlock()
	t.count()
	t.log.Debug("acquired shard", zap.Int("shard", shard))
	// leave waits for done.
	go func() {
		defer t.notify()
		defer close(r.done)
		r.err = t.work(inner, shard)
	}()
	return true
}

// finishRole releases the lock of a role whose call has returned.
func (t *term) finishRole(ctx context.Context, r *role) bool {
	r.cancel()
	if !r.revoked {
		t.log.Error("work on shard ended; restarting", zap.Int("shard", r.shard), zap.Error(r.err))
		t.mu.Lock()
		t.notBefore[r.shard] = time.Now().Add(time.Second)
		t.mu.Unlock()
	}
	if !t.release(ctx, r.shard) {
		return false
	}
	t.m.mu.Lock()
	delete(t.m.roles, r.shard)
	t.m.mu.Unlock()
	t.count()
	// The replica may have to acquire the shard again, and no other event says so.
	t.notify()
	return true
}

// release releases a lock and reports whether it succeeded.
func (t *term) release(ctx context.Context, shard int) bool {
	err := t.session.Release(ctx, t.lockKey(shard))
	if err != nil && ctx.Err() == nil {
		t.m.failures.failed("release a lock", err, zap.Int("shard", shard))
	}
	return err == nil
}

// leave ends all roles and releases all keys.
func (t *term) leave(ctx context.Context) {
	// Keys are released although ctx has ended.
	ctx = context.WithoutCancel(ctx)
	t.m.mu.Lock()
	roles := slices.Collect(maps.Values(t.m.roles))
	for _, r := range roles {
		r.revoked = true
		r.cancel()
	}
	t.m.mu.Unlock()
	t.count()
	var wg sync.WaitGroup
	if t.joined {
		// The other replicas can compute their new shares before the roles have ended.
		wg.Go(func() { t.releaseKey(ctx, t.memberKey()) })
	}
	for _, r := range roles {
		wg.Go(func() {
			<-r.done
			t.releaseKey(ctx, t.lockKey(r.shard))
		})
	}
	wg.Wait()
	t.m.mu.Lock()
	clear(t.m.roles)
	t.m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	if err := t.session.Close(ctx); err != nil {
		t.log.Debug("failed to close session; it will expire", zap.Error(err))
	}
}

// releaseKey releases a key. If that fails, the key is released with the session.
func (t *term) releaseKey(ctx context.Context, key string) {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	if err := t.session.Release(ctx, key); err != nil {
		t.log.Debug("failed to release key; it is released with the session", zap.String("key", key), zap.Error(err))
	}
}

func (t *term) memberKey() string {
	return membersPrefix(t.m.cfg.Prefix, t.m.cfg.Subsystem) + t.m.cfg.Member.Instance
}

func (t *term) lockKey(shard int) string {
	return lockKey(t.m.cfg.Prefix, t.m.cfg.Subsystem, shard)
}

func (t *term) count() { t.m.owned.Set(float64(len(t.m.Owned()))) }
