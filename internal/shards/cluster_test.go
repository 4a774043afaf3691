package shards_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/shards"
)

const (
	prefix    = "test"
	subsystem = "work"
)

// cluster runs replicas over one store, and records which shards they work on. It must
// be used in a synctest bubble.
type cluster struct {
	t      *testing.T
	store  kv.KV
	shards int
	// errorf reports failures: t.Errorf, unless a test replaces it.
	errorf func(format string, args ...any)

	mu sync.Mutex
	// running holds the running calls of work, by shard.
	running map[int][]*run
	faults  []string
	begun   int
	joined  int
}

// run is one running call of work.
type run struct {
	replica *replica
	// dead is set if the replica's session has ended. Another replica may then work on
	// the shard before this one learns of it.
	dead bool
}

// replica is one replica of the cluster.
type replica struct {
	name    string
	kv      *kvfault.KV
	manager *shards.Manager
	cancel  context.CancelFunc
	ended   chan struct{}
	// losing is set while its session is being ended.
	losing bool
	log    *zap.Logger
	// slow is how long work takes to return after its context has ended.
	slow time.Duration
	// fail, if given, may make work return an error at once.
	fail func(shard int) error
}

func newCluster(t *testing.T, n int) *cluster {
	store, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return &cluster{t: t, store: store, shards: n, errorf: t.Errorf, running: map[int][]*run{}}
}

// join starts a replica, which is stopped when the test ends.
func (c *cluster) join(change ...func(*replica)) *replica {
	c.t.Helper()
	c.joined++
	r := &replica{name: fmt.Sprintf("replica%d", c.joined), kv: kvfault.New(c.store), ended: make(chan struct{})}
	r.log = zaptest.NewLogger(c.t).Named(r.name)
	for _, f := range change {
		f(r)
	}
	var err error
	r.manager, err = shards.New(shards.Config{
		KV: r.kv, Prefix: prefix, Subsystem: subsystem, Shards: c.shards, Logger: r.log,
		Member: shards.Member{Instance: r.name, Daemon: "testd", Address: r.name + ":1"},
		Session: func(ctx context.Context) (kv.Session, error) {
			return r.kv.NewSession(ctx, kv.SessionConfig{Name: r.name})
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.t.Context())
	r.cancel = cancel
	go func() {
		defer close(r.ended)
		if err := r.manager.Run(ctx, func(ctx context.Context, shard int) error { return c.work(ctx, r, shard) }); err != nil {
			c.t.Errorf("Run of %s: %v", r.name, err)
		}
	}()
	c.t.Cleanup(r.leave)
	return r
}

// leave stops a replica gracefully.
func (r *replica) leave() {
	r.cancel()
	<-r.ended
}

// loseSession ends a replica's session, as the store does when a replica seems dead.
func (c *cluster) loseSession(r *replica) {
	c.t.Helper()
	losing := func(is bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		r.losing = is
		for _, runs := range c.running {
			for _, x := range runs {
				x.dead = x.dead || x.replica == r
			}
		}
	}
	losing(true)
	if err := r.kv.LoseSessions(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
	losing(false)
}

// crash simulates the death of a replica: its session ends, and its calls no longer
// reach the store.
func (c *cluster) crash(r *replica) {
	r.kv.Cut()
	c.loseSession(r)
	r.leave()
}

// work checks that no other replica works on the shard.
func (c *cluster) work(ctx context.Context, r *replica, shard int) error {
	if r.fail != nil {
		if err := r.fail(shard); err != nil {
			return err
		}
	}
	c.mu.Lock()
	mine := &run{replica: r, dead: r.losing}
	c.begun++
	for _, other := range c.running[shard] {
		if !mine.dead && !other.dead {
			c.faults = append(c.faults, fmt.Sprintf("%s started work on shard %d while %s works on it", r.name, shard, other.replica.name))
		}
	}
	c.running[shard] = append(c.running[shard], mine)
	c.mu.Unlock()
	<-ctx.Done()
	if r.slow > 0 {
		<-time.After(r.slow)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running[shard] = slices.DeleteFunc(c.running[shard], func(x *run) bool { return x == mine })
	return ctx.Err()
}

// held returns how many shards each replica works on.
func (c *cluster) held() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := map[string]int{}
	for _, runs := range c.running {
		for _, x := range runs {
			n[x.replica.name]++
		}
	}
	return n
}

// even reports whether exactly these replicas work on all shards in even shares, and
// their managers report the same.
func (c *cluster) even(replicas ...*replica) bool {
	held, sum := c.held(), 0
	for _, r := range replicas {
		n := held[r.name]
		if least := c.shards / len(replicas); n < least || n > least+1 || len(r.manager.Owned()) != n {
			return false
		}
		sum += n
		delete(held, r.name)
	}
	return len(held) == 0 && sum == c.shards
}

// settled waits until the shares are even, and returns how long that took.
func (c *cluster) settled(replicas ...*replica) time.Duration {
	c.t.Helper()
	return c.until(func() bool { return c.even(replicas...) })
}

// until waits for a condition.
func (c *cluster) until(ok func() bool) time.Duration {
	c.t.Helper()
	began := time.Now()
	for {
		synctest.Wait()
		if ok() {
			c.check()
			return time.Since(began)
		}
		if time.Since(began) > time.Minute {
			c.check()
			c.errorf("condition not met after a minute: shards by replica: %v", c.held())
			return time.Since(began)
		}
		<-time.After(time.Millisecond)
	}
}

// check reports the faults recorded so far.
func (c *cluster) check() {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.faults {
		c.errorf("%s", f)
	}
	c.faults = nil
}

// keys returns all keys under a prefix.
func (c *cluster) keys(under string) []string {
	c.t.Helper()
	pairs, _, err := c.store.List(c.t.Context(), under, kv.ListOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	keys := make([]string, len(pairs))
	for i, p := range pairs {
		keys[i] = p.Key
	}
	return keys
}
