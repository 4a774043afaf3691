package apid_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

func TestServiceLife(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		ctx := t.Context()
		spec := webSpec("Web")
		spec.Labels = map[string]string{"a": "b"}
		spec.Mode = &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: proto.Uint64(3)}}
		s := a.create(spec)
		if len(s.Id) != 25 || s.Meta.Version == 0 || s.Meta.CreatedAt == nil || s.Status.DesiredTasks != 3 || s.Status.Converged {
			t.Errorf("created: %v", s)
		}
		if d := cmp.Diff(spec, s.Spec, protocmp.Transform()); d != "" {
			t.Errorf("spec (-sent +got):\n%s", d)
		}
		for _, ref := range []string{s.Id, "Web", "WEB", s.Id[:12]} {
			if got := a.get(ref); got.Id != s.Id {
				t.Errorf("%s: got service %s, want %s", ref, got.Id, s.Id)
			}
		}

		next := proto.CloneOf(s.Spec)
		next.Task.GetContainer().Image = "nginx:2"
		up, err := a.UpdateService(ctx, &musterv1.UpdateServiceRequest{Service: "web", Version: s.Meta.Version, Spec: next})
		if err != nil {
			t.Fatal(err)
		}
		if up.Service.Meta.Version <= s.Meta.Version || up.Service.SpecVersion <= s.SpecVersion {
			t.Errorf("versions %d, %d after %d, %d", up.Service.Meta.Version, up.Service.SpecVersion, s.Meta.Version, s.SpecVersion)
		}
		if d := cmp.Diff(spec, up.Service.PreviousSpec, protocmp.Transform()); d != "" {
			t.Errorf("previous spec (-want +got):\n%s", d)
		}

		_, err = a.UpdateService(ctx, &musterv1.UpdateServiceRequest{Service: "web", Version: s.Meta.Version, Spec: next})
		wantCode(t, err, codes.Aborted)
		_, err = a.UpdateService(ctx, &musterv1.UpdateServiceRequest{Service: "web", Spec: next})
		wantCode(t, err, codes.InvalidArgument, "version")
		_, err = a.UpdateService(ctx, &musterv1.UpdateServiceRequest{Service: "nope", Version: 1, Spec: next})
		wantCode(t, err, codes.NotFound)

		same, err := a.UpdateService(ctx, &musterv1.UpdateServiceRequest{Service: "web", Version: up.Service.Meta.Version, Spec: next})
		if err != nil || same.Service.Meta.Version != up.Service.Meta.Version {
			t.Errorf("an update that changes nothing: %v, %v", same, err)
		}

		global := proto.CloneOf(next)
		global.Mode = &musterv1.ServiceSpec_Global{Global: &musterv1.GlobalService{}}
		_, err = a.UpdateService(ctx, &musterv1.UpdateServiceRequest{Service: "web", Version: up.Service.Meta.Version, Spec: global})
		wantCode(t, err, codes.Unimplemented)

		scaled, err := a.ScaleService(ctx, &musterv1.ScaleServiceRequest{Service: "web", Replicas: 0})
		if err != nil || scaled.Service.Status.DesiredTasks != 0 || !scaled.Service.Status.Converged || scaled.Service.SpecVersion != up.Service.SpecVersion {
			t.Errorf("scaled: %v, %v", scaled, err)
		}
		_, err = a.ScaleService(ctx, &musterv1.ScaleServiceRequest{Service: "web", Replicas: 1 << 63})
		wantCode(t, err, codes.InvalidArgument, "replicas")

		if _, err := a.RemoveService(ctx, &musterv1.RemoveServiceRequest{Service: "web"}); err != nil {
			t.Fatal(err)
		}
		_, err = a.GetService(ctx, &musterv1.GetServiceRequest{Service: s.Id})
		wantCode(t, err, codes.NotFound)
		_, err = a.RemoveService(ctx, &musterv1.RemoveServiceRequest{Service: "web"})
		wantCode(t, err, codes.NotFound)
		_, err = a.GetService(ctx, &musterv1.GetServiceRequest{})
		wantCode(t, err, codes.InvalidArgument, "service")
		a.create(spec)
	})
}

func TestNamesAreUniqueAcrossReplicas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		replicas := []*api{c.apid(), c.apid()}
		c.spreadTransactions()
		const tries = 16
		for round := range 4 {
			var wg sync.WaitGroup
			errs := make([]error, tries)
			for i := range tries {
				wg.Go(func() {
					name := fmt.Sprintf("web-%d", round)
					if i%2 == 1 {
						name = fmt.Sprintf("WEB-%d", round)
					}
					_, errs[i] = replicas[i%len(replicas)].CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: webSpec(name)})
				})
			}
			wg.Wait()
			won := 0
			for _, err := range errs {
				if err == nil {
					won++
				} else {
					wantCode(t, err, codes.AlreadyExists)
				}
			}
			if won != 1 {
				t.Errorf("%d of %d got the name, want 1", won, tries)
			}
		}
	})
}

func TestConcurrentUpdatesLoseNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		replicas := []*api{c.apid(), c.apid()}
		s := replicas[0].create(webSpec("web"))
		synctest.Wait()
		c.spreadTransactions()
		var wg sync.WaitGroup
		const writers = 8
		for i := range writers {
			wg.Go(func() {
				a := replicas[i%2]
				for {
					got, err := a.GetService(t.Context(), &musterv1.GetServiceRequest{Service: s.Id})
					if err != nil {
						t.Errorf("get: %v", err)
						return
					}
					spec := got.Service.Spec
					if spec.Labels == nil {
						spec.Labels = map[string]string{}
					}
					spec.Labels[fmt.Sprint(i)] = ""
					if _, err = a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: s.Id, Version: got.Service.Meta.Version, Spec: spec}); err == nil {
						return
					}
					wantCode(t, err, codes.Aborted)
				}
			})
		}
		wg.Wait()
		eventually(t, "all labels are there", func() bool { return len(replicas[0].get(s.Id).Spec.Labels) == writers })
	})
}

func TestRegistryAuthIsWriteOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		spec := webSpec("web")
		spec.Task.GetContainer().PullOptions = &musterv1.PullOptions{RegistryAuth: "c2VjcmV0"}
		s := a.create(spec)
		if auth := s.Spec.Task.GetContainer().PullOptions.RegistryAuth; auth != "" {
			t.Errorf("registry auth comes back as %q", auth)
		}
		stored := func() *musterv1.TaskSpec {
			sn := c.store.Snapshot()
			rec, _ := c.tables.Services.Get(sn, s.Id)
			e, _ := c.tables.Specs.Get(sn, state.SpecKey(rec.Value.GetTaskDigest()))
			return e.Value.GetTask()
		}
		settled(t, "it is stored", func() bool { return stored().GetContainer().GetPullOptions().GetRegistryAuth() == "c2VjcmV0" })

		// What was read can be sent back, and changes nothing of the tasks.
		back := proto.CloneOf(s.Spec)
		back.Labels = map[string]string{"a": "b"}
		up, err := a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: s.Id, Version: s.Meta.Version, Spec: back})
		if err != nil || up.Service.SpecVersion != s.SpecVersion {
			t.Errorf("sent back: %v, %v", up, err)
		}
		// A credential is not given to another registry.
		back.Task.GetContainer().Image = "example.com/nginx"
		if _, err = a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: s.Id, Version: up.Service.Meta.Version, Spec: back}); err != nil {
			t.Fatal(err)
		}
		settled(t, "the new image is stored", func() bool { return stored().GetContainer().GetImage() == "example.com/nginx" })
		if auth := stored().GetContainer().GetPullOptions().GetRegistryAuth(); auth != "" {
			t.Errorf("credential went to another registry: %q", auth)
		}
	})
}

// TestRegistryAuthOfGroupIsWriteOnly is TestRegistryAuthIsWriteOnly for a container of a
// group.
func TestRegistryAuthOfGroupIsWriteOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		spec := webSpec("web")
		member := func(name, auth string) *musterv1.GroupContainer {
			return &musterv1.GroupContainer{Name: name, Role: musterv1.GroupContainer_SIDECAR, Runtime: &musterv1.GroupContainer_Container{
				Container: &musterv1.ContainerSpec{Image: "example.com/" + name, PullOptions: &musterv1.PullOptions{RegistryAuth: auth}},
			}}
		}
		spec.Task.Group = []*musterv1.GroupContainer{member("proxy", "c2VjcmV0"), member("logs", "")}
		s := a.create(spec)
		if text := s.Spec.String(); strings.Contains(text, "c2VjcmV0") {
			t.Errorf("registry auth comes back: %s", text)
		}
		back := proto.CloneOf(s.Spec)
		back.Task.Group = []*musterv1.GroupContainer{back.Task.Group[1], back.Task.Group[0]}
		if _, err := a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: s.Id, Version: s.Meta.Version, Spec: back}); err != nil {
			t.Fatal(err)
		}
		stored := func() []*musterv1.GroupContainer {
			sn := c.store.Snapshot()
			rec, _ := c.tables.Services.Get(sn, s.Id)
			e, _ := c.tables.Specs.Get(sn, state.SpecKey(rec.Value.GetTaskDigest()))
			return e.Value.GetTask().GetGroup()
		}
		settled(t, "it is stored", func() bool { g := stored(); return len(g) == 2 && g[0].GetName() == "logs" })
		got := stored()
		if a, b := got[0].GetContainer().GetPullOptions().GetRegistryAuth(), got[1].GetContainer().GetPullOptions().GetRegistryAuth(); a != "" || b != "c2VjcmV0" {
			t.Errorf("credentials are %q and %q, want none and that of proxy", a, b)
		}
	})
}

func TestInsertDefaults(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t).apid()
		s := a.create(webSpec("web"))
		resp, err := a.GetService(t.Context(), &musterv1.GetServiceRequest{Service: "web", InsertDefaults: true})
		if err != nil {
			t.Fatal(err)
		}
		spec := resp.Service.Spec
		if spec.GetReplicated().GetReplicas() != 1 || spec.Task.Restart.Condition != musterv1.RestartPolicy_ANY ||
			spec.Update.Monitor.AsDuration().Seconds() != 5 || spec.Task.GetContainer().StopGracePeriod.AsDuration().Seconds() != 10 {
			t.Errorf("defaults: %v", spec)
		}
		if d := cmp.Diff(s.Spec, a.get("web").Spec, protocmp.Transform()); d != "" {
			t.Errorf("defaults were stored (-before +after):\n%s", d)
		}
	})
}

// A field that is added to the contract must not be lost on the way to the
// store and back.
func TestEveryFieldOfAServiceSpecIsKept(t *testing.T) {
	t.Parallel()
	known := map[string]bool{
		"name": true, "labels": true, "task": true, "replicated": true, "global": true, "replicated_job": true,
		"global_job": true, "update": true, "rollback": true, "endpoint": true, "depends_on": true,
	}
	fields := (&musterv1.ServiceSpec{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if name := string(fields.Get(i).Name()); !known[name] {
			t.Errorf("field %s is not copied: see withoutTask and serviceSpec", name)
		}
	}
}

func TestServiceStatus(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		c.node("n1", "alpha")
		c.node("n2", "beta")
		spec := webSpec("web")
		spec.Mode = &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: proto.Uint64(2)}}
		s := a.create(spec)
		t1, t2 := c.task(s, 1, nil), c.task(s, 2, nil)
		c.assign(s, 1, t1, "n1", runningStatus())
		c.update(func(tx *store.Tx) {
			rec, _ := c.tables.Services.Get(tx, s.Id)
			c.tables.Placements.Put(tx, state.PlacementKey(s.Id, rec.Value.GetTaskDigest()), &recordv1.Placement{Pending: 1, Reason: "no suitable node (x)"})
		})
		settled(t, "one runs, one waits", func() bool {
			st := a.get("web").Status
			return st.DesiredTasks == 2 && st.RunningTasks == 1 && st.PendingReason == "no suitable node (x)" && !st.Converged
		})
		got, err := a.GetTask(t.Context(), &musterv1.GetTaskRequest{Task: t2})
		if err != nil || got.Task.Status.State != musterv1.TaskState_PENDING || got.Task.Status.Error != "no suitable node (x)" {
			t.Errorf("task that waits: %v, %v", got, err)
		}
		c.assign(s, 2, t2, "n2", runningStatus())
		c.update(func(tx *store.Tx) {
			rec, _ := c.tables.Services.Get(tx, s.Id)
			c.tables.Placements.Delete(tx, state.PlacementKey(s.Id, rec.Value.GetTaskDigest()))
		})
		settled(t, "it converges", func() bool { st := a.get("web").Status; return st.Converged && st.PendingReason == "" })

		// A new spec: what runs is of the former one.
		next := proto.CloneOf(s.Spec)
		next.Task.GetContainer().Image = "nginx:2"
		up, err := a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: "web", Version: s.Meta.Version, Spec: next})
		if err != nil || up.Service.Status.Converged || up.Service.Status.RunningTasks != 2 {
			t.Errorf("after the update: %v, %v", up, err)
		}
		// Back, but with another placement, which does not replace tasks whose nodes
		// meet it.
		c.update(func(tx *store.Tx) {
			c.tables.Nodes.Put(tx, "n1", &recordv1.Node{Spec: &musterv1.NodeSpec{Labels: map[string]string{"disk": "ssd"}}})
		})
		settled(t, "the label is seen", func() bool {
			n, err := a.GetNode(t.Context(), &musterv1.GetNodeRequest{Node: "n1"})
			return err == nil && n.Node.Spec.Labels["disk"] == "ssd"
		})
		for constraint, want := range map[string]bool{"node.labels.disk!=hdd": true, "node.labels.disk==ssd": false} {
			placed := proto.CloneOf(s.Spec)
			placed.Task.Placement = &musterv1.Placement{Constraints: []string{constraint}}
			up, err = a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: "web", Version: a.get("web").Meta.Version, Spec: placed})
			if err != nil || up.Service.Status.Converged != want {
				t.Errorf("%s: converged is %v, want %v (%v)", constraint, up.GetService().GetStatus().GetConverged(), want, err)
			}
		}
	})
}

func TestGlobalServiceStatus(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		for _, n := range []string{"n1", "n2", "n3"} {
			c.node(n, n)
		}
		settled(t, "nodes are there", func() bool {
			l, err := a.ListNodes(t.Context(), &musterv1.ListNodesRequest{})
			return err == nil && len(l.Nodes) == 3
		})
		spec := webSpec("web")
		spec.Mode = &musterv1.ServiceSpec_Global{Global: &musterv1.GlobalService{}}
		spec.Task.Placement = &musterv1.Placement{Constraints: []string{"node.hostname!=n3"}}
		s := a.create(spec)
		if s.Status.DesiredTasks != 2 || s.Status.Converged {
			t.Errorf("status %v, want 2 desired", s.Status)
		}
		for _, n := range []string{"n1", "n2"} {
			id := c.task(s, 0, func(r *recordv1.Task) { r.NodeId = n })
			c.assign(s, 0, id, n, runningStatus())
		}
		settled(t, "it converges", func() bool { return a.get("web").Status.Converged })
		c.node("n4", "n4")
		settled(t, "a new node wants a task", func() bool { st := a.get("web").Status; return st.DesiredTasks == 3 && !st.Converged })
	})
}

func TestStoreAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.apid().create(webSpec("web"))
		a := c.apid()
		settled(t, "the service is seen", func() bool {
			_, err := a.GetService(t.Context(), &musterv1.GetServiceRequest{Service: "web"})
			return err == nil
		})
		mend := c.faults.Inject(kvfault.Fault{Op: kvfault.Txn, Err: kv.ErrUnavailable})
		_, err := a.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: webSpec("other")})
		wantCode(t, err, codes.Unavailable)
		if got := a.rest("POST", "/v1/services", `{"name":"x","task":{"container":{"image":"nginx"}}}`); got.code != 503 {
			t.Errorf("REST: %d %s", got.code, got.body)
		}
		if got := a.get("web"); got.Id != s.Id {
			t.Errorf("reads need the store: %v", got)
		}
		mend()
		eventually(t, "the store is back", func() bool {
			_, err := a.ScaleService(t.Context(), &musterv1.ScaleServiceRequest{Service: "web", Replicas: 2})
			return err == nil
		})
	})
}

func TestServiceWithoutNameGetsOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.node("n1", "host1")
		a := c.apid()
		spec := webSpec("")
		first := a.create(spec)
		answer := a.rest(http.MethodPost, "/v1/services", `{"task":{"container":{"image":"nginx"}}}`)
		var second struct{ Spec struct{ Name string } }
		if err := json.Unmarshal([]byte(answer.body), &second); err != nil || answer.code != http.StatusOK {
			t.Fatalf("REST: %d %s", answer.code, answer.body)
		}
		name := first.Spec.Name
		if !regexp.MustCompile(`^[a-z]+-[a-z]+[0-9]?$`).MatchString(name) || second.Spec.Name == "" || second.Spec.Name == name {
			t.Errorf("gRPC named a service %q, and REST %q; want two readable names", name, second.Spec.Name)
		}
		spec.Labels = map[string]string{"a": "b"}
		updated, err := a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: first.Id, Version: first.Meta.Version, Spec: spec})
		if err != nil {
			t.Fatal(err)
		}
		if updated.Service.Spec.Name != name {
			t.Errorf("an update without a name turns %q into %q", name, updated.Service.Spec.Name)
		}
		if got := a.get(name); got.Id != first.Id {
			t.Errorf("%q is service %s, want %s", name, got.Id, first.Id)
		}
	})
}
