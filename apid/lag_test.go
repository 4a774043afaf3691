package apid_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/kvfault"
)

// lagging returns two replicas, of which there sees task specs later than what refers to
// them.
func lagging(t *testing.T) (c *cluster, here, there *api) {
	t.Helper()
	c = newCluster(t)
	here, there = c.apid(), c.apid()
	synctest.Wait()
	t.Cleanup(c.faults.Inject(kvfault.Fault{Op: kvfault.List, Prefix: "muster/specs/", Delay: 5 * time.Second}))
	return c, here, there
}

// TestServiceIsNeverShownWithoutItsTaskSpec asks a replica that lags: a client that
// writes such a service back would be refused.
func TestServiceIsNeverShownWithoutItsTaskSpec(t *testing.T) {
	t.Parallel()
	for name, ask := range map[string]func(t *testing.T, there *api) *musterv1.Service{
		"get": func(_ *testing.T, there *api) *musterv1.Service { return there.get("web") },
		"list over REST": func(t *testing.T, there *api) *musterv1.Service {
			resp := new(musterv1.ListServicesResponse)
			if err := protojson.Unmarshal([]byte(there.rest(http.MethodGet, "/v1/services", "").body), resp); err != nil || len(resp.Services) != 1 {
				t.Fatalf("list is %v, %v", resp, err)
			}
			return resp.Services[0]
		},
		"scale": func(t *testing.T, there *api) *musterv1.Service {
			resp, err := there.ScaleService(t.Context(), &musterv1.ScaleServiceRequest{Service: "web", Replicas: 3})
			if err != nil {
				t.Fatal(err)
			}
			return resp.Service
		},
		"roll back twice": func(t *testing.T, there *api) *musterv1.Service {
			var resp *musterv1.RollbackServiceResponse
			for range 2 {
				var err error
				if resp, err = there.RollbackService(t.Context(), &musterv1.RollbackServiceRequest{Service: "web"}); err != nil {
					t.Fatal(err)
				}
			}
			return resp.Service
		},
	} {
		subtest(t, name, func(t *testing.T) {
			_, here, there := lagging(t)
			s := here.create(webSpec("web"))
			next := webSpec("web")
			next.Task.GetContainer().Image = "nginx:2"
			if _, err := here.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: "web", Version: s.Meta.Version, Spec: next}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if s := ask(t, there); imageOf(s.Spec) != "nginx:2" || imageOf(s.PreviousSpec) != "nginx" {
				t.Errorf("the service has image %q and had %q, want nginx:2 and nginx: %v", imageOf(s.Spec), imageOf(s.PreviousSpec), s)
			}
		})
	}
}

// TestServiceJoinsNetworkOfAnotherReplica asks a replica that does not know the network
// yet.
func TestServiceJoinsNetworkOfAnotherReplica(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{"muster/networks/", "muster/names/"} {
		subtest(t, strings.Trim(prefix, "/"), func(t *testing.T) {
			c := newCluster(t)
			here, there := c.apid(), c.apid()
			synctest.Wait()
			t.Cleanup(c.faults.Inject(kvfault.Fault{Op: kvfault.List, Prefix: prefix, Delay: 5 * time.Second}))
			back := here.createNetwork(&musterv1.NetworkSpec{Name: "back"})
			spec := webSpec("web")
			spec.Task.Networks = []*musterv1.NetworkAttachmentConfig{{Target: "back"}}
			if s := there.create(spec); s.Spec.Task.Networks[0].Target != back.Id {
				t.Errorf("the service is on %v, want %s", s.Spec.Task.Networks, back.Id)
			}
		})
	}
}

func TestTaskIsNeverShownWithoutItsTaskSpec(t *testing.T) {
	t.Parallel()
	for name, ask := range map[string]func(t *testing.T, there *api, id string) *musterv1.Task{
		"get": func(t *testing.T, there *api, id string) *musterv1.Task {
			resp, err := there.GetTask(t.Context(), &musterv1.GetTaskRequest{Task: id})
			if err != nil {
				t.Fatal(err)
			}
			return resp.Task
		},
		"list over REST": func(t *testing.T, there *api, _ string) *musterv1.Task {
			resp := new(musterv1.ListTasksResponse)
			if err := protojson.Unmarshal([]byte(there.rest(http.MethodGet, "/v1/tasks?services=web", "").body), resp); err != nil || len(resp.Tasks) != 1 {
				t.Fatalf("list is %v, %v", resp, err)
			}
			return resp.Tasks[0]
		},
	} {
		subtest(t, name, func(t *testing.T) {
			c, here, there := lagging(t)
			s := here.create(webSpec("web"))
			id := c.task(s, 1, nil)
			if image := ask(t, there, id).Spec.GetContainer().GetImage(); image != "nginx" {
				t.Errorf("the task has image %q, want nginx", image)
			}
		})
	}
}

// TestWatchTellsOfNothingWithoutItsTaskSpec watches a replica that lags. Each change must
// arrive once and in order, and a watch that resumes must miss none.
func TestWatchTellsOfNothingWithoutItsTaskSpec(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, here, there := lagging(t)
		req := &musterv1.WatchRequest{IncludeOld: true}
		w := there.watch(req)
		begun := w.token
		s := here.create(webSpec("web"))
		if e := w.next(); !is(musterv1.WatchAction_CREATE, musterv1.ObjectKind_SERVICE, s.Id)(e) || imageOf(e.GetService().Spec) != "nginx" {
			t.Errorf("creation: %v", e)
		}
		next := webSpec("web")
		next.Task.GetContainer().Image = "nginx:2"
		if _, err := here.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: s.Id, Version: s.Meta.Version, Spec: next}); err != nil {
			t.Fatal(err)
		}
		e := w.next()
		if !is(musterv1.WatchAction_UPDATE, musterv1.ObjectKind_SERVICE, s.Id)(e) || imageOf(e.GetService().Spec) != "nginx:2" || imageOf(e.GetOldService().Spec) != "nginx" {
			t.Errorf("update: %v", e)
		}
		id := c.task(s, 1, nil)
		task := w.until("the task", is(musterv1.WatchAction_CREATE, musterv1.ObjectKind_TASK, id))
		if image := task.GetTask().GetSpec().GetContainer().GetImage(); image != "nginx:2" {
			t.Errorf("the task has image %q, want nginx:2", image)
		}
		synctest.Wait()
		resumed := there.watch(&musterv1.WatchRequest{ResumeToken: begun})
		if e := resumed.next(); !is(musterv1.WatchAction_CREATE, musterv1.ObjectKind_SERVICE, s.Id)(e) || imageOf(e.GetService().Spec) != "nginx:2" {
			t.Errorf("first event after the token: %v", e)
		}
		if e := resumed.next(); !is(musterv1.WatchAction_CREATE, musterv1.ObjectKind_TASK, id)(e) || e.GetTask().GetSpec() == nil {
			t.Errorf("second event after the token: %v", e)
		}
	})
}

// TestUnreadableTaskSpecMakesReplicaUnavailable asks a replica that sees a service and
// cannot read its task spec.
func TestUnreadableTaskSpecMakesReplicaUnavailable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, here, there := lagging(t)
		w := there.watch(&musterv1.WatchRequest{})
		mend := c.faults.Inject(kvfault.Fault{
			Op: kvfault.Txn, Prefix: "muster/specs/", When: func(c kvfault.Call) bool { return !c.Writes }, Err: kv.ErrUnavailable,
		})
		s := here.create(webSpec("web"))
		synctest.Wait()
		_, err := there.ListServices(t.Context(), &musterv1.ListServicesRequest{})
		wantCode(t, err, codes.Unavailable)
		_, err = w.stream.Recv()
		wantCode(t, err, codes.Unavailable)
		mend()
		if e := there.watch(&musterv1.WatchRequest{ResumeToken: w.token}).next(); !is(musterv1.WatchAction_CREATE, musterv1.ObjectKind_SERVICE, s.Id)(e) || imageOf(e.GetService().Spec) != "nginx" {
			t.Errorf("after the token: %v", e)
		}
	})
}

// TestWatchTellsOfRemovalsWhoseTaskSpecIsGone resumes a watch while the store is away.
func TestWatchTellsOfRemovalsWhoseTaskSpecIsGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		s := a.create(webSpec("web"))
		w := a.watch(&musterv1.WatchRequest{})
		w.cancel()
		if _, err := a.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: s.Id}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the task spec is removed", func() bool {
			for range c.tables.Specs.Scan(c.store.Snapshot(), "") {
				return false
			}
			return true
		})
		defer c.faults.Inject(kvfault.Fault{Err: kv.ErrUnavailable})()
		e := a.watch(&musterv1.WatchRequest{ResumeToken: w.token}).next()
		if !is(musterv1.WatchAction_DELETE, musterv1.ObjectKind_SERVICE, s.Id)(e) || e.GetService().GetSpec().GetName() != "web" {
			t.Errorf("after the token: %v", e)
		}
	})
}
