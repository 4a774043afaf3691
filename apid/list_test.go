package apid_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func TestListServicesFiltersAndPages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newCluster(t).apid()
		var ids []string
		for i := range 25 {
			spec := webSpec(fmt.Sprintf("web-%02d", i))
			spec.Labels = map[string]string{"odd": fmt.Sprint(i % 2)}
			if i == 7 {
				spec.Labels["special"] = ""
			}
			ids = append(ids, a.create(spec).Id)
		}
		slices.Sort(ids)
		tests := map[string]struct {
			req  *musterv1.ListServicesRequest
			want int
		}{
			"all":             {&musterv1.ListServicesRequest{}, 25},
			"names":           {&musterv1.ListServicesRequest{Names: []string{"web-01", "WEB-02", "nope"}}, 2},
			"prefixes":        {&musterv1.ListServicesRequest{NamePrefixes: []string{"web-1"}}, 10},
			"ids":             {&musterv1.ListServicesRequest{IdPrefixes: []string{ids[0], ids[1][:20]}}, 2},
			"label":           {&musterv1.ListServicesRequest{Labels: []string{"odd=1"}}, 12},
			"present":         {&musterv1.ListServicesRequest{Labels: []string{"special"}}, 1},
			"empty value":     {&musterv1.ListServicesRequest{Labels: []string{"special="}}, 1},
			"all must":        {&musterv1.ListServicesRequest{Labels: []string{"odd=0", "special"}}, 0},
			"across":          {&musterv1.ListServicesRequest{Labels: []string{"odd=0"}, NamePrefixes: []string{"web-1"}}, 5},
			"size":            {&musterv1.ListServicesRequest{PageSize: 3}, 3},
			"more than there": {&musterv1.ListServicesRequest{PageSize: 5000}, 25},
		}
		for name, test := range tests {
			resp, err := a.ListServices(t.Context(), test.req)
			if err != nil || len(resp.Services) != test.want {
				t.Errorf("%s: %d services, want %d (%v)", name, len(resp.GetServices()), test.want, err)
			}
		}
		_, err := a.ListServices(t.Context(), &musterv1.ListServicesRequest{Labels: []string{"=x"}})
		wantCode(t, err, codes.InvalidArgument, "labels")

		var paged []string
		req := &musterv1.ListServicesRequest{PageSize: 10}
		for {
			resp, err := a.ListServices(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range resp.Services {
				paged = append(paged, s.Id)
			}
			// What comes and goes between pages moves nothing.
			a.create(webSpec(fmt.Sprintf("more-%d", len(paged))))
			if req.PageToken = resp.NextPageToken; req.PageToken == "" {
				break
			}
		}
		for _, id := range ids {
			if n := len(paged) - len(slices.DeleteFunc(slices.Clone(paged), func(p string) bool { return p == id })); n != 1 {
				t.Errorf("service %s is on %d pages, want 1", id, n)
			}
		}
		if !slices.IsSorted(paged) {
			t.Error("pages are not in order of id")
		}
	})
}

func FuzzPageToken(f *testing.F) {
	c := newCluster(f)
	a := c.apid()
	for i := range 3 {
		a.create(webSpec(fmt.Sprint("web", i)))
	}
	first, err := a.ListServices(f.Context(), &musterv1.ListServicesRequest{PageSize: 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(first.NextPageToken)
	f.Add("AQ")
	f.Fuzz(func(t *testing.T, token string) {
		_, err := a.ListServices(t.Context(), &musterv1.ListServicesRequest{PageSize: 1, PageToken: strings.ToValidUTF8(token, "")})
		if err != nil {
			wantCode(t, err, codes.InvalidArgument, "pageToken")
		}
	})
}

func TestTasks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		c.node("n1", "alpha")
		c.node("n2", "beta")
		web, db := a.create(webSpec("web")), a.create(webSpec("db"))
		t1, t2 := c.task(web, 1, nil), c.task(web, 2, nil)
		t3 := c.task(db, 1, func(r *recordv1.Task) { r.SpecDigest = []byte("old"); r.DesiredState = musterv1.TaskState_SHUTDOWN })
		c.assign(web, 1, t1, "n1", runningStatus())
		c.assign(db, 1, t3, "n2", &recordv1.Status{State: musterv1.TaskState_FAILED, At: 7000, Error: "exit 1", Runtime: &musterv1.RuntimeStatus{ExitCode: 1}})
		settled(t, "tasks are there", func() bool {
			l, err := a.ListTasks(t.Context(), &musterv1.ListTasksRequest{States: []musterv1.TaskState{musterv1.TaskState_RUNNING, musterv1.TaskState_FAILED}})
			return err == nil && len(l.Tasks) == 2
		})

		got, err := a.GetTask(t.Context(), &musterv1.GetTaskRequest{Task: "web.1." + t1})
		if err != nil {
			t.Fatal(err)
		}
		task := got.Task
		if task.Name != "web.1."+t1 || task.ServiceName != "web" || task.NodeId != "n1" || task.Slot != 1 ||
			task.Spec.GetContainer().GetImage() != "nginx" || task.Status.State != musterv1.TaskState_RUNNING || task.Meta.Version == 0 {
			t.Errorf("task: %v", task)
		}
		var line []musterv1.TaskState
		for _, m := range task.Timeline {
			line = append(line, m.State)
		}
		if fmt.Sprint(line) != "[PENDING ASSIGNED ACCEPTED RUNNING]" {
			t.Errorf("timeline %v", line)
		}
		if n := len(task.Stages); n < 3 || task.Stages[n-1].Daemon == "" || task.Stages[n-1].Took == nil {
			t.Errorf("stages %v", task.Stages)
		}
		for name, test := range map[string]struct {
			req  *musterv1.ListTasksRequest
			want []string
		}{
			"all":         {&musterv1.ListTasksRequest{}, []string{t1, t2, t3}},
			"service":     {&musterv1.ListTasksRequest{Services: []string{"WEB"}}, []string{t1, t2}},
			"by id":       {&musterv1.ListTasksRequest{Services: []string{db.Id}}, []string{t3}},
			"both":        {&musterv1.ListTasksRequest{Services: []string{"web", "db"}}, []string{t1, t2, t3}},
			"unknown":     {&musterv1.ListTasksRequest{Services: []string{"nope"}}, nil},
			"node":        {&musterv1.ListTasksRequest{Nodes: []string{"Alpha"}}, []string{t1}},
			"node id":     {&musterv1.ListTasksRequest{Nodes: []string{"n2", "n1"}}, []string{t1, t3}},
			"desired":     {&musterv1.ListTasksRequest{DesiredStates: []musterv1.TaskState{musterv1.TaskState_SHUTDOWN}}, []string{t3}},
			"pending":     {&musterv1.ListTasksRequest{States: []musterv1.TaskState{musterv1.TaskState_PENDING}}, []string{t2}},
			"up to date":  {&musterv1.ListTasksRequest{UpToDate: true}, []string{t1, t2}},
			"id prefixes": {&musterv1.ListTasksRequest{IdPrefixes: []string{t2[:20]}}, []string{t2}},
			"labels":      {&musterv1.ListTasksRequest{Labels: []string{"a"}}, nil},
		} {
			resp, err := a.ListTasks(t.Context(), test.req)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			var ids []string
			for _, task := range resp.Tasks {
				ids = append(ids, task.Id)
			}
			slices.Sort(test.want)
			if !slices.Equal(ids, test.want) {
				t.Errorf("%s: got %v, want %v", name, ids, test.want)
			}
		}
		_, err = a.GetTask(t.Context(), &musterv1.GetTaskRequest{Task: "nope"})
		wantCode(t, err, codes.NotFound)

		// A task outlives its service for a while.
		if _, err := a.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: "web"}); err != nil {
			t.Fatal(err)
		}
		if got, err = a.GetTask(t.Context(), &musterv1.GetTaskRequest{Task: t1}); err != nil || got.Task.ServiceName != "web" {
			t.Errorf("task without its service: %v, %v", got, err)
		}
		resp, err := a.ListTasks(t.Context(), &musterv1.ListTasksRequest{Services: []string{web.Id}})
		if err != nil || len(resp.Tasks) != 2 {
			t.Errorf("tasks of the removed service: %v, %v", resp, err)
		}
	})
}

func TestNodes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		ctx := t.Context()
		docker := &musterv1.ExecutorDescription{Name: "docker", Kinds: []string{"container"}}
		c.node("n1", "alpha", docker)
		c.node("n2", "beta", docker, &musterv1.ExecutorDescription{Name: "null", Kinds: []string{"null"}})
		c.node("n3", "beta")
		s := a.create(webSpec("web"))
		id := c.task(s, 1, nil)
		c.assign(s, 1, id, "n1", runningStatus())
		get := func(ref string) *musterv1.Node {
			resp, err := a.GetNode(ctx, &musterv1.GetNodeRequest{Node: ref})
			if err != nil {
				return nil
			}
			return resp.Node
		}
		settled(t, "the node has a task", func() bool { return get("alpha").GetTaskCount() == 1 })
		n := get("ALPHA")
		if n.Id != "n1" || n.Meta.Version != 0 || n.Spec.Availability != musterv1.NodeSpec_ACTIVE || n.Spec.Role != musterv1.NodeSpec_WORKER || n.Reserved.NanoCpus != 10 {
			t.Errorf("node: %v", n)
		}
		_, err := a.GetNode(ctx, &musterv1.GetNodeRequest{Node: "beta"})
		wantCode(t, err, codes.InvalidArgument)
		_, err = a.GetNode(ctx, &musterv1.GetNodeRequest{Node: "gamma"})
		wantCode(t, err, codes.NotFound)

		drain := &musterv1.NodeSpec{Availability: musterv1.NodeSpec_DRAIN, Labels: map[string]string{"a": "b"}}
		up, err := a.UpdateNode(ctx, &musterv1.UpdateNodeRequest{Node: "n1", Spec: drain})
		if err != nil || up.Node.Meta.Version == 0 || up.Node.Spec.Availability != musterv1.NodeSpec_DRAIN {
			t.Fatalf("update: %v, %v", up, err)
		}
		_, err = a.UpdateNode(ctx, &musterv1.UpdateNodeRequest{Node: "n1", Spec: drain})
		wantCode(t, err, codes.Aborted)
		_, err = a.UpdateNode(ctx, &musterv1.UpdateNodeRequest{Node: "n1", Version: up.Node.Meta.Version, Spec: &musterv1.NodeSpec{Role: musterv1.NodeSpec_MANAGER}})
		wantCode(t, err, codes.InvalidArgument, "spec.role")
		_, err = a.UpdateNode(ctx, &musterv1.UpdateNodeRequest{Node: "n1", Version: up.Node.Meta.Version})
		wantCode(t, err, codes.InvalidArgument, "spec")

		for name, test := range map[string]struct {
			req  *musterv1.ListNodesRequest
			want int
		}{
			"all": {&musterv1.ListNodesRequest{}, 3}, "name": {&musterv1.ListNodesRequest{Names: []string{"beta"}}, 2},
			"label": {&musterv1.ListNodesRequest{Labels: []string{"a=b"}}, 1}, "prefix": {&musterv1.ListNodesRequest{NamePrefixes: []string{"al"}}, 1},
			"state": {&musterv1.ListNodesRequest{States: []musterv1.NodeStatus_State{musterv1.NodeStatus_DOWN}}, 0},
			"drain": {&musterv1.ListNodesRequest{Availabilities: []musterv1.NodeSpec_Availability{musterv1.NodeSpec_DRAIN}}, 1},
		} {
			l, err := a.ListNodes(ctx, test.req)
			if err != nil || len(l.Nodes) != test.want {
				t.Errorf("%s: %d nodes, want %d (%v)", name, len(l.GetNodes()), test.want, err)
			}
		}
		for name, test := range map[string]struct {
			req  *musterv1.ListPluginsRequest
			want int
		}{
			"all": {&musterv1.ListPluginsRequest{}, 3}, "name": {&musterv1.ListPluginsRequest{Names: []string{"null"}}, 1},
			"node": {&musterv1.ListPluginsRequest{Nodes: []string{"beta"}}, 2},
		} {
			l, err := a.ListPlugins(ctx, test.req)
			if err != nil || len(l.Plugins) != test.want {
				t.Errorf("plugins by %s: %d, want %d (%v)", name, len(l.GetPlugins()), test.want, err)
			}
		}
		c.networkPlugin("n2", "overlay")
		settled(t, "the network plugin is listed", func() bool {
			l, err := a.ListPlugins(ctx, &musterv1.ListPluginsRequest{Names: []string{"overlay"}})
			return err == nil && len(l.Plugins) == 1 && l.Plugins[0].NodeId == "n2" && l.Plugins[0].NetworkDriver.GetName() == "overlay"
		})

		_, err = a.RemoveNode(ctx, &musterv1.RemoveNodeRequest{Node: "n1"})
		wantCode(t, err, codes.FailedPrecondition)
		if _, err = a.RemoveNode(ctx, &musterv1.RemoveNodeRequest{Node: "n1", Force: true}); err != nil {
			t.Fatal(err)
		}
		if get("n1") != nil {
			t.Error("removed node is still there")
		}
		_, err = a.RemoveNode(ctx, &musterv1.RemoveNodeRequest{Node: "n1", Force: true})
		wantCode(t, err, codes.NotFound)
		_, err = a.UpdateNode(ctx, &musterv1.UpdateNodeRequest{Node: "n1", Spec: drain})
		wantCode(t, err, codes.NotFound)
	})
}

func TestCluster(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.apid(), c.apid()
		ctx := t.Context()
		a.create(webSpec("web"))
		c.node("n1", "alpha")
		get := func(a *api) *musterv1.Cluster {
			resp, err := a.GetCluster(ctx, &musterv1.GetClusterRequest{})
			if err != nil {
				t.Fatal(err)
			}
			return resp.Cluster
		}
		settled(t, "both replicas are listed", func() bool {
			st := get(b).Status
			return st.Services == 1 && st.ReadyNodes == 1 && len(st.Daemons) == 2 && st.Daemons[0].Daemon == "apid"
		})
		if got := get(a); got.Id != "default" || got.Meta.Version != 0 || got.Status.Version != "test" {
			t.Errorf("cluster: %v", got)
		}
		limit := int64(3)
		spec := &musterv1.ClusterSpec{Orchestration: &musterv1.OrchestrationConfig{TaskHistoryRetentionLimit: &limit}}
		up, err := a.UpdateCluster(ctx, &musterv1.UpdateClusterRequest{Spec: spec})
		if err != nil || up.Cluster.Meta.Version == 0 || up.Cluster.Spec.Orchestration.GetTaskHistoryRetentionLimit() != 3 {
			t.Errorf("update: %v, %v", up, err)
		}
		_, err = a.UpdateCluster(ctx, &musterv1.UpdateClusterRequest{Spec: spec})
		wantCode(t, err, codes.Aborted)
		_, err = a.UpdateCluster(ctx, &musterv1.UpdateClusterRequest{})
		wantCode(t, err, codes.InvalidArgument, "spec")
	})
}

func TestSpecsOfOthersAreRefusedUntilTheirExecutorIsKnown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		spec := &musterv1.ServiceSpec{Name: "job", Task: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "wasm"}}}}
		create := func() error {
			_, err := a.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: spec})
			return err
		}
		wantCode(t, create(), codes.FailedPrecondition, "spec.task.generic.kind")
		c.node("n1", "alpha", &musterv1.ExecutorDescription{Name: "null", Kinds: []string{"null"}})
		settled(t, "the node is known", func() bool {
			l, err := a.ListNodes(t.Context(), &musterv1.ListNodesRequest{})
			return err == nil && len(l.Nodes) == 1
		})
		wantCode(t, create(), codes.InvalidArgument, "spec.task.generic.kind")
		c.node("n2", "beta", &musterv1.ExecutorDescription{Name: "wasm", Kinds: []string{"wasm"}, PayloadSchema: `{"required":["module"]}`})
		settled(t, "both nodes are known", func() bool {
			l, err := a.ListNodes(t.Context(), &musterv1.ListNodesRequest{})
			return err == nil && len(l.Nodes) == 2
		})
		wantCode(t, create(), codes.InvalidArgument, "spec.task.generic.payload.module")
		l, err := a.ListServices(t.Context(), &musterv1.ListServicesRequest{})
		if err != nil || len(l.Services) != 0 {
			t.Errorf("a refused request changed something: %v, %v", l, err)
		}
	})
}
