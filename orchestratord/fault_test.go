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
// live tasks, a desired state is lowered, or a slot is filled or given up that
// is one too many or one too few. Update order is "stop first" in these tests.
func (c *cluster) watchInvariants(service string) {
	c.run(func(ctx context.Context) error {
		var seen *store.Snapshot
		live, present, since := 0, 0, time.Now()
		for {
			sn, err := c.store.Wait(ctx, seen, c.tables.Tasks)
			if err != nil {
				return nil
			}
			for ch := range c.tables.Tasks.Changes(seen, sn) {
				if ch.Old != nil && ch.New != nil && ch.New.Value.DesiredState < ch.Old.Value.DesiredState {
					return fmt.Errorf("desired state of %s is lowered", ch.New.Key)
				}
			}
			slots, kept := map[string]int{}, map[string]bool{}
			for e := range c.tables.Tasks.Scan(sn, service+"/") {
				_, slot, _ := state.SplitKey(e.Key)
				if e.Value.DesiredState <= musterv1.TaskState_COMPLETE {
					if slots[slot]++; slots[slot] > 1 {
						return fmt.Errorf("slot %s has two live tasks", slot)
					}
				}
				kept[slot] = kept[slot] || e.Value.DesiredState < musterv1.TaskState_REMOVE
			}
			least, most := c.wanted(since)
			if len(slots) > live && len(slots) > most {
				return fmt.Errorf("grown from %d to %d slots, want %d", live, len(slots), most)
			}
			if len(slots) < live && len(kept) < present && len(slots) < least {
				return fmt.Errorf("shrunk from %d to %d slots, want %d", live, len(slots), least)
			}
			live, present = len(slots), len(kept)
			seen, since = sn, time.Now()
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
// before it is applied or after, and lets another continue.
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
	c.watchInvariants("web")
	c.run(c.world)
	ctx, kill := context.WithCancel(t.Context())
	f := &fuse{KV: c.kv, left: n, after: after, blown: kill}
	env := c.env("victim")
	env.KV = f
	victim, err := orchestratord.New(env)
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
			c.orchestrator()
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

// apart gives a replica locks of its own, so that it believes to be alone, and
// lets it see each table late by a time of its own.
type apart struct {
	kv.KV
	locks kv.KV
	lags  map[string]time.Duration // by table
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
	pairs, index, err := a.of(prefix).List(ctx, prefix, opt)
	if lag := a.lags[strings.Split(prefix, "/")[1]]; lag > 0 && opt.After > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(lag):
		}
	}
	return pairs, index, err
}
func (a *apart) NewSession(ctx context.Context, cfg kv.SessionConfig) (kv.Session, error) {
	return a.locks.NewSession(ctx, cfg)
}

// TestTwoThatBelieveToBeAlone runs two orchestrators that both hold all
// shards, and of which each knows something late that the other one knows: no
// safety may rest on a lock, nor on what was seen when.
func TestTwoThatBelieveToBeAlone(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		lag := rapid.SampledFrom([]time.Duration{0, 0, time.Millisecond, 40 * time.Millisecond, 700 * time.Millisecond})
		lags := make([]map[string]time.Duration, 2)
		for i := range lags {
			lags[i] = map[string]time.Duration{}
			for _, table := range []string{"services", "tasks", "statuses", "nodestates"} {
				lags[i][table] = lag.Draw(rt, table)
			}
		}
		scales := rapid.SliceOfN(rapid.IntRange(0, 30), 2, 6).Draw(rt, "replicas")
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, zap.NewNop())
			defer c.close()
			twoAlone(t, c, lags, scales)
		})
	})
}

// TestTwoGiveUpDifferentSlots lets two orchestrators choose different victims,
// because only one of them knows yet which tasks have just failed.
func TestTwoGiveUpDifferentSlots(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.up("a", "b")
		c.startAlone(t, []map[string]time.Duration{nil, {"tasks": 700 * time.Millisecond, "statuses": 700 * time.Millisecond}})
		c.watchInvariants("web")
		c.run(c.world)
		c.service("web", replicated(10), null(1))
		c.settle("web", 10)
		pass(time.Second)
		for _, x := range c.live("web")[:5] {
			c.report(x, musterv1.TaskState_FAILED)
		}
		synctest.Wait()
		pass(100 * time.Millisecond)
		scaled := time.Now()
		c.service("web", replicated(5), null(1))
		c.settle("web", 5)
		for _, x := range c.live("web") {
			if x.Record.CreatedAt >= scaled.UnixMilli() {
				t.Errorf("too many slots were given up: %s is new", x.Key)
			}
		}
	})
}

// TestNodeIsSeenLate lets a task be seen on a node that the orchestrator does
// not know of yet: it is not replaced for that.
func TestNodeIsSeenLate(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.startAlone(t, []map[string]time.Duration{{"nodestates": 5 * time.Second}})
		c.run(c.world)
		c.service("web", replicated(3), null(1))
		pass(10 * time.Second)
		c.up("a")
		synctest.Wait()
		c.up("b")
		c.settle("web", 3)
		for _, x := range c.tasks("web") {
			if !x.Live() {
				t.Errorf("task was replaced: %s", x.Record.Reason)
			}
		}
	})
}

// TestLabelIsSeenLate lets a task be seen on a node of which it is not known
// yet that it was given the label that the task asks for.
func TestLabelIsSeenLate(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.startAlone(t, []map[string]time.Duration{{"nodes": 5 * time.Second}})
		c.run(c.world)
		c.up("a", "b")
		pass(20 * time.Second)
		c.service("web", replicated(3), onDisks("ssd"))
		c.service("agent", global(), onDisks("ssd"))
		pass(20 * time.Second)
		for _, id := range []string{"a", "b"} {
			c.node(id, musterv1.NodeStatus_READY, musterv1.NodeSpec_ACTIVE, map[string]string{"disk": "ssd"})
		}
		c.settle("web", 3)
		c.settle("agent", 2)
		pass(20 * time.Second)
		for _, x := range append(c.tasks("web"), c.tasks("agent")...) {
			if !x.Live() {
				t.Errorf("task %s was replaced: %s", x.Key, x.Record.Reason)
			}
		}
	})
}

// TestNodeIsUnfitFirst lets a task be seen on a node of which it is known by
// then that the task must not be there.
func TestNodeIsUnfitFirst(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.startAlone(t, []map[string]time.Duration{{"assignments": 2 * time.Second}})
		c.run(c.world)
		c.node("a", musterv1.NodeStatus_READY, musterv1.NodeSpec_ACTIVE, map[string]string{"disk": "ssd"})
		c.up("b")
		c.service("web", replicated(3), onDisks("ssd"))
		pass(500 * time.Millisecond)
		c.up("a")
		c.node("b", musterv1.NodeStatus_READY, musterv1.NodeSpec_ACTIVE, map[string]string{"disk": "ssd"})
		pass(20 * time.Second)
		c.settle("web", 3)
		for _, x := range c.live("web") {
			if x.NodeID != "b" {
				t.Errorf("task on node %s", x.NodeID)
			}
		}
	})
}

// TestRunningIsSeenFirst lets the orchestrator see at once that new tasks have
// nodes and run already, which is what an update waits for.
func TestRunningIsSeenFirst(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.startAlone(t, []map[string]time.Duration{{"assignments": 2 * time.Second}})
		c.run(c.world)
		c.up("a", "b")
		spec := replicated(3)
		spec.Update = &musterv1.UpdateConfig{Order: musterv1.UpdateConfig_START_FIRST}
		c.service("web", spec, null(1))
		c.settle("web", 3)
		pass(10 * time.Second)
		c.service("web", spec, null(2))
		pass(10 * time.Second)
		if why := c.converged("web", 3); why != "" {
			t.Error(why)
		}
		if e, ok := c.tables.Rollouts.Get(c.store.Snapshot(), "web"); !ok || e.Value.State != musterv1.UpdateStatus_COMPLETED {
			t.Errorf("rollout %v", e.Value)
		}
	})
}

func twoAlone(t *testing.T, c *cluster, lags []map[string]time.Duration, scales []int) {
	c.up("a", "b")
	c.startAlone(t, lags)
	c.watchInvariants("web")
	c.run(c.world)
	for i, n := range scales {
		c.service("web", replicated(uint64(n)), null(uint64(i/2)))
		switch i % 3 {
		case 0:
			pass(50 * time.Millisecond)
		case 1:
			c.settle("web", n)
		case 2:
			c.node("a", musterv1.NodeStatus_DOWN, musterv1.NodeSpec_ACTIVE, nil)
			pass(10 * time.Millisecond)
			c.up("a")
		}
	}
	c.settle("web", scales[len(scales)-1])
	c.remove("web")
	c.settle("web", 0)
}

// startAlone starts orchestrators that each hold all shards.
func (c *cluster) startAlone(t *testing.T, lags []map[string]time.Duration) {
	for i := range lags {
		locks, err := embedded.Open(embedded.Config{})
		if err != nil {
			t.Fatal(err)
		}
		env := c.env(fmt.Sprintf("alone%d", i))
		env.KV = &apart{KV: c.kv, locks: locks, lags: lags[i]}
		env.Session = func(ctx context.Context) (kv.Session, error) {
			return locks.NewSession(ctx, kv.SessionConfig{Name: "alone"})
		}
		d, err := orchestratord.New(env)
		if err != nil {
			t.Fatal(err)
		}
		c.run(d.Run)
		synctest.Wait()
		if n := len(d.Owned()); n != store.Shards {
			t.Fatalf("holds %d shards", n)
		}
	}
}

// TestReplicasComeAndGo lets replicas join and leave while services change.
func TestReplicasComeAndGo(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		script := rapid.SliceOfN(rapid.IntRange(0, 9), 5, 25).Draw(rt, "script")
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, zap.NewNop())
			defer c.close()
			c.up("a", "b", "c")
			c.watchInvariants("web")
			c.run(c.world)
			var stops []func()
			want := 0
			for i, step := range script {
				switch step {
				case 0, 1:
					stops = append(stops, c.orchestrator())
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
					spec := replicated(uint64(want))
					spec.Update = &musterv1.UpdateConfig{Parallelism: 2, FailureAction: musterv1.UpdateConfig_CONTINUE}
					c.service("web", spec, null(uint64(step)))
				}
			}
			c.up("a", "b", "c")
			c.orchestrator()
			c.settle("web", want)
			c.remove("web")
			c.settle("web", 0)
		})
	})
}
