package orchestratord_test

import (
	"testing"
	"testing/synctest"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// named is a service that depends on others.
func named(name string, on ...*musterv1.ServiceDependency) *musterv1.ServiceSpec {
	s := replicated(1)
	s.Name, s.DependsOn = name, on
	return s
}

func on(service string, condition musterv1.ServiceDependency_Condition) *musterv1.ServiceDependency {
	return &musterv1.ServiceDependency{Service: service, Condition: condition}
}

// desired returns what is desired of a service's only live task.
func (c *cluster) desired(service string) musterv1.TaskState {
	c.t.Helper()
	synctest.Wait()
	live := c.live(service)
	if len(live) != 1 {
		c.t.Fatalf("service %s has %d live tasks, want 1", service, len(live))
	}
	return live[0].Desired()
}

// step has a service's only live task reach a state on a node.
func (c *cluster) step(service string, s musterv1.TaskState) {
	c.t.Helper()
	synctest.Wait()
	t := c.live(service)[0]
	if t.NodeID == "" {
		c.update(func(tx *store.Tx) error {
			c.tables.Assignments.Put(tx, state.NodeTaskKey("n1", t.ServiceID, t.ID), &recordv1.Assignment{Slot: t.Record.Slot})
			return nil
		})
		t.NodeID = "n1"
	}
	c.report(t, s)
}

// TestServiceStartsWithItsDependencies has each condition come true, and checks that the
// task of the dependent service starts then and not before.
func TestServiceStartsWithItsDependencies(t *testing.T) {
	once := null(1)
	once.Restart = &musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_ON_FAILURE}
	for _, tt := range []struct {
		condition musterv1.ServiceDependency_Condition
		db        *musterv1.TaskSpec
		before    []musterv1.TaskState
		at        musterv1.TaskState
	}{
		{musterv1.ServiceDependency_STARTED, null(1), []musterv1.TaskState{musterv1.TaskState_STARTING}, musterv1.TaskState_RUNNING},
		{musterv1.ServiceDependency_HEALTHY, null(1), []musterv1.TaskState{musterv1.TaskState_STARTING}, musterv1.TaskState_RUNNING},
		{musterv1.ServiceDependency_COMPLETED, once, []musterv1.TaskState{musterv1.TaskState_STARTING, musterv1.TaskState_RUNNING}, musterv1.TaskState_COMPLETE},
	} {
		t.Run(tt.condition.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				c.up("n1")
				c.orchestrator()
				c.service("web", named("shop_web", on("Shop_DB", tt.condition)), null(1))
				if got := c.desired("web"); got != musterv1.TaskState_NEW {
					t.Fatalf("without the dependency the task is desired %v", got)
				}
				c.service("db", named("shop_db"), tt.db)
				for _, s := range tt.before {
					c.step("db", s)
					if got := c.desired("web"); got != musterv1.TaskState_NEW {
						t.Fatalf("while the other task is %v the task is desired %v", s, got)
					}
				}
				c.step("db", tt.at)
				if got := c.desired("web"); got != musterv1.TaskState_RUNNING {
					t.Fatalf("the other task is %v, and the task is desired %v", tt.at, got)
				}
			})
		})
	}
}

func TestDependencyThatIsNotRequiredMayBeAbsent(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.up("n1")
		c.orchestrator()
		optional := on("shop_db", musterv1.ServiceDependency_STARTED)
		optional.Required = new(bool)
		c.service("web", named("shop_web", optional), null(1))
		if got := c.desired("web"); got != musterv1.TaskState_RUNNING {
			t.Errorf("the task is desired %v", got)
		}
	})
}

// TestUpdateWaitsForTheUpdateOfADependency updates two services at once, and checks
// that the task of the dependent one is replaced after that of the other.
func TestUpdateWaitsForTheUpdateOfADependency(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.up("n1")
		c.orchestrator()
		stop := c.run(c.world)
		c.service("db", named("shop_db"), null(1))
		c.service("web", named("shop_web", on("shop_db", musterv1.ServiceDependency_HEALTHY)), null(1))
		c.settle("db", 1)
		c.settle("web", 1)
		stop()
		c.service("db", named("shop_db"), null(2))
		c.service("web", named("shop_web", on("shop_db", musterv1.ServiceDependency_HEALTHY)), null(2))
		synctest.Wait()
		former := c.live("web")
		pass(10 * time.Second)
		synctest.Wait()
		if now := c.live("web"); len(now) != 1 || now[0].ID != former[0].ID {
			t.Fatal("the task is replaced before that of the service that it depends on")
		}
		c.run(c.world)
		c.settle("db", 1)
		c.settle("web", 1)
	})
}

// TestRemovedServicesStopInOrder removes two services at once, and checks that the one
// that the other depends on runs until that has stopped.
func TestRemovedServicesStopInOrder(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.up("n1")
		c.orchestrator()
		stop := c.run(c.world)
		c.service("db", named("shop_db"), null(1))
		c.service("web", named("shop_web", on("shop_db", musterv1.ServiceDependency_STARTED)), null(1))
		c.settle("db", 1)
		c.settle("web", 1)
		stop()
		c.update(func(tx *store.Tx) error {
			now := time.Now().UnixMilli()
			for id, name := range map[string]*recordv1.Name{
				"db":  {Name: "shop_db", RemovedAt: now},
				"web": {Name: "shop_web", RemovedAt: now, DependsOn: []string{"shop_db"}},
			} {
				c.tables.Services.Delete(tx, id)
				c.tables.Names.Put(tx, state.RemovedNameKey(id), name)
			}
			return nil
		})
		pass(time.Second)
		if n := len(c.live("web")); n != 0 {
			t.Errorf("%d tasks of the dependent service should run", n)
		}
		if got := c.desired("db"); got != musterv1.TaskState_RUNNING {
			t.Errorf("the dependency is desired %v while the dependent service stops", got)
		}
		c.run(c.world)
		c.settle("web", 0)
		c.settle("db", 0)
	})
}

// TestRemovedServiceStopsAlthoughDependentsHang removes two services of which the
// dependent one never stops.
func TestRemovedServiceStopsAlthoughDependentsHang(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.up("n1")
		c.orchestrator()
		stop := c.run(c.world)
		c.service("db", named("shop_db"), null(1))
		c.service("web", named("shop_web", on("shop_db", musterv1.ServiceDependency_STARTED)), null(1))
		c.settle("db", 1)
		c.settle("web", 1)
		stop()
		c.update(func(tx *store.Tx) error {
			c.tables.Services.Delete(tx, "db")
			c.tables.Services.Delete(tx, "web")
			c.tables.Names.Put(tx, state.RemovedNameKey("db"), &recordv1.Name{Name: "shop_db", RemovedAt: time.Now().UnixMilli()})
			c.tables.Names.Put(tx, state.RemovedNameKey("web"), &recordv1.Name{Name: "shop_web", DependsOn: []string{"shop_db"}})
			return nil
		})
		pass(119 * time.Second)
		if got := c.desired("db"); got != musterv1.TaskState_RUNNING {
			t.Errorf("the dependency is desired %v", got)
		}
		pass(2 * time.Second)
		synctest.Wait()
		if n := len(c.live("db")); n != 0 {
			t.Errorf("%d tasks should run on", n)
		}
	})
}
