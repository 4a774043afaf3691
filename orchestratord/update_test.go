package orchestratord_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// watchTurns checks at every change that at most as many slots have their turn at once
// as are allowed, and that none has two in one rollout.
func (c *cluster) watchTurns(service string, most int) {
	c.run(func(ctx context.Context) error {
		f := state.NewFollower(c.tables)
		var seen *store.Snapshot
		had := map[string]string{} // the task of a slot's turn, by rollout and slot
		for {
			if _, err := c.store.Wait(ctx, seen); err != nil {
				return nil
			}
			// In the midst of a moment tasks may be known of which the statuses that
			// they rest on are not; at its end all are.
			time.Sleep(time.Nanosecond)
			seen = c.store.Snapshot()
			f.Advance(seen)
			flying := 0
			for t := range f.ServiceTasks(service) {
				turn := t.Record.Turn
				if turn == nil {
					continue
				}
				at := fmt.Sprint(turn.Rollout, " ", t.Record.Slot)
				if t.Record.Reason == "task spec changed" && t.Live() {
					if had[at] != "" && had[at] != t.ID {
						return fmt.Errorf("slot %d has two turns in rollout %d", t.Record.Slot, turn.Rollout)
					}
					had[at] = t.ID
				}
				if t.Live() && turn.SettledAt == 0 && t.State() < musterv1.TaskState_RUNNING {
					flying++
				}
			}
			if flying > most {
				return fmt.Errorf("%d slots have their turn at once, at most %d may", flying, most)
			}
		}
	})
}

func rolling(n uint64, u *musterv1.UpdateConfig) *musterv1.ServiceSpec {
	s := replicated(n)
	s.Update = u
	return s
}

func (c *cluster) rollout(service string) *recordv1.Rollout {
	e, _ := c.tables.Rollouts.Get(c.store.Snapshot(), service)
	return e.Value
}

// TestUpdateGoesOnWhenItsOrchestratorEnds ends the orchestrator again and again during
// an update, and lets another continue.
func TestUpdateGoesOnWhenItsOrchestratorEnds(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.up("a", "b", "c")
		u := &musterv1.UpdateConfig{Parallelism: 2, Delay: seconds(1), Monitor: seconds(3)}
		stop := c.orchestrator()
		c.run(c.world)
		c.service("web", rolling(20, u), null(1))
		c.settle("web", 20)
		c.watchTurns("web", 2)
		began := time.Now()
		c.service("web", rolling(20, u), null(2))
		for range 8 {
			pass(1200 * time.Millisecond)
			stop()
			stop = c.orchestrator()
		}
		c.settle("web", 20)
		pass(4 * time.Second)
		synctest.Wait()
		if r := c.rollout("web"); r.GetState() != musterv1.UpdateStatus_COMPLETED || r.Number != 1 || r.Slots != 20 {
			t.Errorf("rollout %v", r)
		}
		if took := time.Since(began); took < 12*time.Second {
			t.Errorf("10 pairs with a delay of 1 s took %v", took)
		}
	})
}

// TestTwoBelieveThatAnUpdateIsTheirs has two orchestrators that each hold all
// shards, and see what the other does late.
func TestTwoBelieveThatAnUpdateIsTheirs(t *testing.T) {
	for _, lags := range [][]map[string]time.Duration{
		{nil, nil},
		{nil, {"tasks": 2 * time.Second}},
		{{"rollouts": time.Second}, {"statuses": time.Second, "tasks": 300 * time.Millisecond}},
	} {
		bubble(t, func(t *testing.T, c *cluster) {
			c.up("a", "b", "c")
			c.startAlone(t, lags)
			c.run(c.world)
			u := &musterv1.UpdateConfig{Parallelism: 3}
			c.service("web", rolling(15, u), null(1))
			c.settle("web", 15)
			c.watchTurns("web", 3)
			c.service("web", rolling(15, u), null(2))
			c.settle("web", 15)
			pass(20 * time.Second)
			if r := c.rollout("web"); r.GetState() != musterv1.UpdateStatus_COMPLETED {
				t.Errorf("rollout %v", r)
			}
		})
	}
}

// TestFailuresAreCountedByWhoGoesOn ends the orchestrator between two failures that
// are too many together.
func TestFailuresAreCountedByWhoGoesOn(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.up("a", "b")
		u := &musterv1.UpdateConfig{
			Parallelism: 1, Delay: seconds(10), MaxFailureRatio: 0.3, Monitor: seconds(60), FailureAction: musterv1.UpdateConfig_ROLLBACK,
		}
		stop := c.orchestrator()
		c.run(c.world)
		c.service("web", rolling(4, u), null(1))
		c.settle("web", 4)
		c.service("web", rolling(4, u), null(2))
		for slot := range uint64(2) {
			pass(5 * time.Second)
			for _, x := range c.live("web") {
				if x.Record.Slot == slot+1 {
					c.report(x, musterv1.TaskState_FAILED)
				}
			}
			pass(5 * time.Second)
			if slot == 0 {
				if r := c.rollout("web"); r.GetState() != musterv1.UpdateStatus_UPDATING {
					t.Fatalf("rollout after the first failure: %v", r)
				}
				stop()
				stop = c.orchestrator()
			}
		}
		pass(30 * time.Second)
		if r := c.rollout("web"); r.GetState() != musterv1.UpdateStatus_ROLLBACK_COMPLETED || !r.RolledBack {
			t.Errorf("rollout %v", r)
		}
		for _, x := range c.live("web") {
			if x.Record.SpecVersion != 1 {
				t.Errorf("task %s is of spec %d", x.Key, x.Record.SpecVersion)
			}
		}
		stop()
	})
}

func seconds(n int) *durationpb.Duration { return durationpb.New(time.Duration(n) * time.Second) }
