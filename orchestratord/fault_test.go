package orchestratord_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/orchestratord"
)

// watchInvariants follows the tasks and fails the test if a slot ever has two
// live tasks, more slots have one than there ever were replicas, or a desired
// state is lowered. Update order is "stop first" in these tests.
func (c *cluster) watchInvariants(service string, most int) {
	c.run(func(ctx context.Context) error {
		var seen *store.Snapshot
		for {
			sn, err := c.store.Wait(ctx, seen)
			if err != nil {
				return nil
			}
			for ch := range c.tables.Tasks.Changes(seen, sn) {
				if ch.Old != nil && ch.New != nil && ch.New.Value.DesiredState < ch.Old.Value.DesiredState {
					return fmt.Errorf("desired state of %s is lowered", ch.New.Key)
				}
			}
			live := map[string]int{}
			for e := range c.tables.Tasks.Scan(sn, service+"/") {
				_, slot, _ := state.SplitKey(e.Key)
				if e.Value.DesiredState <= musterv1.TaskState_COMPLETE {
					live[slot]++
				}
				if live[slot] > 1 {
					return fmt.Errorf("slot %s has two live tasks", slot)
				}
			}
			if len(live) > most {
				return fmt.Errorf("%d slots have live tasks, want at most %d", len(live), most)
			}
			seen = sn
		}
	})
}

// fuse is a key space that fails at one write, and calls blown.
type fuse struct {
	kv.KV
	mu    sync.Mutex
	left  int
	after bool // the write is applied, and its answer lost
	blown func()
}

func (f *fuse) Txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	writes := false
	for _, op := range ops {
		writes = writes || op.Verb == kv.CAS || op.Verb == kv.Set
	}
	if !writes {
		return f.KV.Txn(ctx, ops)
	}
	f.mu.Lock()
	f.left--
	now := f.left == 0
	f.mu.Unlock()
	if !now {
		return f.KV.Txn(ctx, ops)
	}
	defer f.blown()
	if f.after {
		if _, err := f.KV.Txn(ctx, ops); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("fuse: %w", kv.ErrUnavailable)
}

// TestKilledAtEveryWrite ends the orchestrator at its first, second, … write,
// before it is applied or after, and lets another go on.
func TestKilledAtEveryWrite(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			var reached bool
			t.Run(fmt.Sprintf("write %d, applied %t", n, after), func(t *testing.T) {
				bubble(t, func(t *testing.T, c *cluster) { reached = killedAt(t, c, n, after) })
			})
			if !reached {
				break
			}
		}
	}
}

func killedAt(t *testing.T, c *cluster, n int, after bool) bool {
	c.up("a", "b")
	c.watchInvariants("web", 5)
	c.run(c.world)
	ctx, kill := context.WithCancel(t.Context())
	f := &fuse{KV: c.kv, left: n, after: after, blown: kill}
	env := c.env("victim")
	env.KV = f
	victim, err := orchestratord.New(env, orchestratord.Config{})
	if err != nil {
		t.Fatal(err)
	}
	died := make(chan error, 1)
	go func() { died <- victim.Run(ctx) }()
	heir := make(chan struct{})
	go func() {
		defer close(heir)
		<-ctx.Done()
		if err := <-died; err != nil {
			t.Errorf("killed: %v", err)
		}
		if t.Context().Err() == nil {
			c.orchestrator(orchestratord.Config{})
		}
	}()
	c.service("web", replicated(3), null(1))
	c.settle("web", 3)
	c.service("web", replicated(5), null(2))
	c.settle("web", 5)
	c.node("a", musterv1.NodeStatus_DOWN, musterv1.NodeSpec_ACTIVE, nil)
	c.settle("web", 5)
	c.report(c.live("web")[0], musterv1.TaskState_FAILED)
	c.settle("web", 5)
	c.service("web", replicated(1), null(2))
	c.settle("web", 1)
	c.remove("web")
	c.settle("web", 0)
	f.mu.Lock()
	reached := f.left <= 0
	f.mu.Unlock()
	if !reached {
		kill()
	}
	<-heir
	return reached
}

// apart gives a replica locks of its own, so that it believes to be alone.
type apart struct {
	kv.KV
	locks kv.KV
}

func (a *apart) of(key string) kv.KV {
	for _, p := range []string{"locks", "members"} {
		if strings.HasPrefix(key, daemon.Prefix+"/"+p+"/") {
			return a.locks
		}
	}
	return a.KV
}

func (a *apart) Get(ctx context.Context, key string) (kv.Pair, error) { return a.of(key).Get(ctx, key) }
func (a *apart) List(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	return a.of(prefix).List(ctx, prefix, opt)
}
func (a *apart) NewSession(ctx context.Context, cfg kv.SessionConfig) (kv.Session, error) {
	return a.locks.NewSession(ctx, cfg)
}

// TestTwoThatBelieveToBeAlone runs two orchestrators that both hold all
// shards: no safety may rest on a lock.
func TestTwoThatBelieveToBeAlone(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.up("a", "b")
		for i := range 2 {
			locks, err := embedded.Open(embedded.Config{})
			if err != nil {
				t.Fatal(err)
			}
			env := c.env(fmt.Sprintf("alone%d", i))
			env.KV = &apart{KV: c.kv, locks: locks}
			env.Session = func(ctx context.Context) (kv.Session, error) {
				return locks.NewSession(ctx, kv.SessionConfig{Name: "alone"})
			}
			d, err := orchestratord.New(env, orchestratord.Config{})
			if err != nil {
				t.Fatal(err)
			}
			c.run(d.Run)
			synctest.Wait()
			if n := len(d.Owned()); n != store.Shards {
				t.Fatalf("holds %d shards", n)
			}
		}
		c.watchInvariants("web", 50)
		c.run(c.world)
		c.service("web", replicated(50), null(1))
		c.settle("web", 50)
		c.service("web", replicated(50), null(2))
		c.settle("web", 50)
		c.node("a", musterv1.NodeStatus_DOWN, musterv1.NodeSpec_ACTIVE, nil)
		c.settle("web", 50)
		c.service("web", replicated(20), null(3))
		c.settle("web", 20)
		c.service("web", replicated(40), null(3))
		c.settle("web", 40)
		c.remove("web")
		c.settle("web", 0)
	})
}

// TestReplicasComeAndGo lets replicas join and leave while services change.
func TestReplicasComeAndGo(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		script := rapid.SliceOfN(rapid.IntRange(0, 9), 5, 25).Draw(rt, "script")
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, zap.NewNop())
			defer c.close()
			c.up("a", "b", "c")
			c.watchInvariants("web", 9)
			c.run(c.world)
			var stops []func()
			want := 0
			for i, step := range script {
				switch step {
				case 0, 1:
					stops = append(stops, c.orchestrator(orchestratord.Config{}))
				case 2:
					if len(stops) > 0 {
						stops[0]()
						stops = stops[1:]
					}
				case 3:
					c.node("a", musterv1.NodeStatus_DOWN, musterv1.NodeSpec_ACTIVE, nil)
				case 4:
					c.up("a")
				case 5:
					if ts := c.live("web"); len(ts) > 0 && ts[0].NodeID != "" {
						c.report(ts[0], musterv1.TaskState_FAILED)
					}
				case 6:
					pass(time.Duration(i) * 300 * time.Millisecond)
				case 7:
					synctest.Wait()
				default:
					want = (step*7 + i) % 10
					c.service("web", replicated(uint64(want)), null(uint64(step)))
				}
			}
			c.up("a", "b", "c")
			c.orchestrator(orchestratord.Config{})
			c.settle("web", want)
			c.remove("web")
			c.settle("web", 0)
		})
	})
}
