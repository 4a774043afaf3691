package apid_test

import (
	"net/http"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// A watch with filters is told of what comes to pass them, of changes while it
// passes, and of what leaves them, and of nothing else.
func TestWatchSelectsByProperties(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.node("n1", "alpha")
		c.node("n2", "beta")
		a := c.apid()
		web := webSpec("web")
		web.Labels = map[string]string{"team": "a"}
		s := a.create(web)
		other := webSpec("other")
		other.Mode = &musterv1.ServiceSpec_Global{Global: &musterv1.GlobalService{}}
		o := a.create(other)

		global := a.watch(&musterv1.WatchRequest{Modes: []musterv1.ServiceMode{musterv1.ServiceMode_GLOBAL}})
		labelled := a.watch(&musterv1.WatchRequest{Labels: []string{"team=a"}, Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_TASK}})
		unlabelled := a.watch(&musterv1.WatchRequest{Labels: []string{"team!=a"}, Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_TASK}})
		running := a.watch(&musterv1.WatchRequest{States: []musterv1.TaskState{musterv1.TaskState_RUNNING}})
		onBeta := a.watch(&musterv1.WatchRequest{Nodes: []string{"Beta"}, Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_TASK}})
		drained := a.watch(&musterv1.WatchRequest{Availabilities: []musterv1.NodeSpec_Availability{musterv1.NodeSpec_DRAIN}})

		webTask := c.task(s, 1, nil)
		otherTask := c.task(o, 0, func(r *recordv1.Task) { r.NodeId = "n2" })
		c.assign(s, 1, webTask, "n1", runningStatus())
		c.assign(o, 0, otherTask, "n2", runningStatus())
		for _, availability := range []musterv1.NodeSpec_Availability{musterv1.NodeSpec_PAUSE, musterv1.NodeSpec_DRAIN, musterv1.NodeSpec_ACTIVE} {
			got, err := a.GetNode(t.Context(), &musterv1.GetNodeRequest{Node: "n1"})
			if err != nil {
				t.Fatal(err)
			}
			spec := proto.CloneOf(got.Node.Spec)
			spec.Availability = availability
			if _, err := a.UpdateNode(t.Context(), &musterv1.UpdateNodeRequest{Node: "n1", Version: got.Node.Meta.Version, Spec: spec}); err != nil {
				t.Fatal(err)
			}
			if availability == musterv1.NodeSpec_DRAIN {
				// Changes that follow each other closely may arrive as one.
				if e := drained.next(); e.Id != "n1" || e.GetNode().GetSpec().GetAvailability() != musterv1.NodeSpec_DRAIN {
					t.Errorf("the first event of a drained node is %v", e)
				}
			}
		}
		if _, err := a.ScaleService(t.Context(), &musterv1.ScaleServiceRequest{Service: "web", Replicas: 2}); err != nil {
			t.Fatal(err)
		}

		expect := func(name string, w *watcher, id string) *musterv1.WatchEvent {
			t.Helper()
			e := w.next()
			if e.Id != id {
				t.Errorf("the watch for %s is told of %v %s, want %s", name, e.Kind, e.Id, id)
			}
			return e
		}
		expect("global services", global, o.Id)
		expect("tasks of labelled services", labelled, webTask)
		expect("tasks of other services", unlabelled, otherTask)
		for seen := map[string]bool{}; len(seen) < 2; {
			e := running.next()
			if e.GetTask().GetStatus().GetState() != musterv1.TaskState_RUNNING {
				t.Errorf("the watch for running tasks is told of %v", e)
			}
			seen[e.Id] = true
		}
		expect("tasks on beta", onBeta, otherTask)
		if e := expect("drained nodes", drained, "n1"); e.GetNode().GetSpec().GetAvailability() != musterv1.NodeSpec_ACTIVE {
			t.Errorf("what a node becomes that leaves the filter is told as %v", e)
		}

		_, err := a.tryWatch(&musterv1.WatchRequest{Labels: []string{"!"}})
		wantCode(t, err, codes.InvalidArgument, "labels")
	})
}

func TestListFiltersOverREST(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.node("n1", "alpha")
		a := c.apid()
		web := webSpec("web")
		web.Labels = map[string]string{"team": "a"}
		s := a.create(web)
		a.create(webSpec("bare"))
		c.task(s, 1, nil)
		c.task(s, 12, nil)
		for path, want := range map[string]int{
			"/v1/services?labels=team!%3Da":                              1,
			"/v1/services?labels=!team":                                  1,
			"/v1/services?labels=team":                                   1,
			"/v1/services?labels=team%3Da&labels=!other":                 1,
			"/v1/services?modes=REPLICATED":                              2,
			"/v1/services?modes=GLOBAL&modes=GLOBAL_JOB":                 0,
			"/v1/nodes?roles=WORKER":                                     1,
			"/v1/nodes?roles=MANAGER":                                    0,
			"/v1/nodes?states=READY&availabilities=ACTIVE&labels=!disk":  1,
			"/v1/tasks?names=Web.1":                                      1,
			"/v1/tasks?namePrefixes=web.1":                               2,
			"/v1/tasks?names=web.2":                                      0,
			"/v1/tasks?labels=team!%3Da":                                 0,
			"/v1/tasks?upToDate=true&desiredStates=RUNNING&names=web.12": 1,
		} {
			got := a.rest(http.MethodGet, path, "")
			n := 0
			for _, field := range []string{"services", "nodes", "tasks"} {
				list, _ := got.json[field].([]any)
				n += len(list)
			}
			if got.code != http.StatusOK || n != want {
				t.Errorf("%s: %d with %d objects, want %d\n%s", path, got.code, n, want, got.body)
			}
		}
	})
}

func TestRemoveTask(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		s := a.create(webSpec("web"))
		id := c.task(s, 1, nil)
		desired := func() musterv1.TaskState {
			t.Helper()
			resp, err := a.GetTask(t.Context(), &musterv1.GetTaskRequest{Task: id})
			if err != nil {
				t.Fatal(err)
			}
			return resp.Task.DesiredState
		}
		for range 2 {
			if got := a.rest(http.MethodDelete, "/v1/tasks/web.1."+id, ""); got.code != http.StatusOK {
				t.Fatalf("%d %s", got.code, got.body)
			}
			if d := desired(); d != musterv1.TaskState_REMOVE {
				t.Errorf("a removed task is desired %v, want REMOVE", d)
			}
		}
		c.update(func(tx *store.Tx) { c.tables.Tasks.Delete(tx, state.TaskKey(s.Id, 1, "", id)) })
		if got := a.rest(http.MethodDelete, "/v1/tasks/"+id, ""); got.code != http.StatusNotFound {
			t.Errorf("removing a task that is gone: %d %s", got.code, got.body)
		}
	})
}
