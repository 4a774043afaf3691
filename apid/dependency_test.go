package apid_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

func dependentSpec(name string, on ...*musterv1.ServiceDependency) *musterv1.ServiceSpec {
	s := webSpec(name)
	s.DependsOn = on
	return s
}

func TestCyclesOfDependenciesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t).apid()
		// The services that these depend on come later.
		a.create(dependentSpec("web", &musterv1.ServiceDependency{Service: "api"}, &musterv1.ServiceDependency{Service: "cache"}))
		a.create(dependentSpec("api", &musterv1.ServiceDependency{Service: "DB"}))
		const cycle = "db -> web -> api -> DB"
		closing := dependentSpec("db", &musterv1.ServiceDependency{Service: "web"})
		_, err := a.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: closing})
		wantCode(t, err, codes.InvalidArgument, "spec.dependsOn")
		if !strings.Contains(err.Error(), cycle) {
			t.Errorf("creating says %q, which does not name %q", err, cycle)
		}
		db := a.create(webSpec("db"))
		_, err = a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: "db", Version: db.Meta.Version, Spec: closing})
		wantCode(t, err, codes.InvalidArgument, "spec.dependsOn")
		if !strings.Contains(err.Error(), cycle) {
			t.Errorf("updating says %q, which does not name %q", err, cycle)
		}
		// It is no cycle that two depend on the same.
		a.create(dependentSpec("admin", &musterv1.ServiceDependency{Service: "web"}, &musterv1.ServiceDependency{Service: "db"}))
	})
}

func TestDependenciesAreChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t).apid()
		_, err := a.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: dependentSpec("web",
			&musterv1.ServiceDependency{}, &musterv1.ServiceDependency{Service: "WEB"},
			&musterv1.ServiceDependency{Service: "db"}, &musterv1.ServiceDependency{Service: "Db"}, &musterv1.ServiceDependency{Service: "a b"},
			&musterv1.ServiceDependency{Service: "x", Condition: 9})})
		wantCode(t, err, codes.InvalidArgument, "spec.dependsOn[0].service", "spec.dependsOn[1].service",
			"spec.dependsOn[3].service", "spec.dependsOn[4].service", "spec.dependsOn[5].condition")
	})
}

// TestWaitingTaskSaysWhatItWaitsFor reads a task that may not start yet, while its
// dependency comes up.
func TestWaitingTaskSaysWhatItWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		web := a.create(dependentSpec("shop_web", &musterv1.ServiceDependency{Service: "shop_db", Condition: musterv1.ServiceDependency_HEALTHY}))
		id := c.task(web, 1, func(t *recordv1.Task) { t.DesiredState = musterv1.TaskState_NEW })
		says := func(want string) {
			t.Helper()
			synctest.Wait()
			got, err := a.GetTask(t.Context(), &musterv1.GetTaskRequest{Task: id})
			if err != nil {
				t.Fatal(err)
			}
			if m := got.Task.Status.Message; m != want {
				t.Errorf("the task says %q, want %q", m, want)
			}
		}
		says("waiting for shop_db: there is no such service yet")
		if r := a.get("shop_web").Status.PendingReason; r != "waiting for shop_db: there is no such service yet" {
			t.Errorf("the service says %q", r)
		}
		db := a.create(webSpec("shop_db"))
		says("waiting for shop_db: 0 of 1 tasks healthy")
		task := c.task(db, 1, nil)
		c.assign(db, 1, task, "n1", runningStatus())
		says("waiting for a node")
	})
}

// TestDependentsRestart updates a service, and checks which others get new tasks.
func TestDependentsRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t).apid()
		db := a.create(webSpec("db"))
		a.create(dependentSpec("api", &musterv1.ServiceDependency{Service: "DB", Restart: true}))
		a.create(dependentSpec("web", &musterv1.ServiceDependency{Service: "api", Restart: true}))
		a.create(dependentSpec("other", &musterv1.ServiceDependency{Service: "db"}))
		synctest.Wait()
		check := func(what string, want map[string]uint64) {
			t.Helper()
			for name, n := range want {
				if got := a.get(name).Spec.Task.ForceUpdate; got != n {
					t.Errorf("%s: service %s has force update %d, want %d", what, name, got, n)
				}
			}
		}
		spec := webSpec("db")
		spec.Labels = map[string]string{"a": "b"}
		resp, err := a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: "db", Version: db.Meta.Version, Spec: spec})
		if err != nil {
			t.Fatal(err)
		}
		check("a label changes", map[string]uint64{"api": 0, "web": 0, "other": 0})
		spec.Task.GetContainer().Image = "nginx:2"
		if _, err = a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: "db", Version: resp.Service.Meta.Version, Spec: spec}); err != nil {
			t.Fatal(err)
		}
		check("the image changes", map[string]uint64{"api": 1, "web": 1, "other": 0})
	})
}

// TestDependentsRestartOnce has services that restart with another one by many paths: four of
// each layer depend on all of the layer below.
func TestDependentsRestartOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t).apid()
		const layers, width = 12, 4
		root := a.create(webSpec("root"))
		below := []*musterv1.ServiceDependency{{Service: "root", Restart: true}}
		for layer := range layers {
			var made []*musterv1.ServiceDependency
			for i := range width {
				name := fmt.Sprintf("s%d-%d", layer, i)
				a.create(dependentSpec(name, below...))
				made = append(made, &musterv1.ServiceDependency{Service: name, Restart: true})
			}
			below = made
		}
		synctest.Wait()
		spec := webSpec("root")
		spec.Task.GetContainer().Image = "nginx:2"
		if _, err := a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: "root", Version: root.Meta.Version, Spec: spec}); err != nil {
			t.Fatal(err)
		}
		for layer := range layers {
			for i := range width {
				name := fmt.Sprintf("s%d-%d", layer, i)
				if got := a.get(name).Spec.Task.ForceUpdate; got != 1 {
					t.Errorf("service %s has force update %d, want 1", name, got)
				}
			}
		}
	})
}

func TestRemovedServiceKeepsItsDependencies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		web := a.create(dependentSpec("web", &musterv1.ServiceDependency{Service: "db"}))
		if _, err := a.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: "web"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		e, _ := c.tables.Names.Get(c.store.Snapshot(), state.RemovedNameKey(web.Id))
		if got := e.Value.GetDependsOn(); len(got) != 1 || got[0] != "db" {
			t.Errorf("the record of the removed service names %q, want db", got)
		}
	})
}
