package plan_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

func TestUpdateStopsFirst(t *testing.T) {
	w := single(t, nil)
	old := w.one(t, 1)
	w.spec(null(2))
	w.reconcile(t)
	if got := w.tasks[old.Key].Desired(); got != shutdown {
		t.Errorf("old task desired %v, want SHUTDOWN", got)
	}
	next := w.one(t, 1)
	if next.Desired() != ready || next.Record.SpecVersion != 2 {
		t.Errorf("new task %v", next.Record)
	}
	w.assign(next, "b")
	w.report(next, ready)
	w.reconcile(t)
	if got := w.one(t, 1).Desired(); got != ready {
		t.Errorf("new task desired %v before the old one has stopped", got)
	}
	w.report(old, shutdown)
	w.reconcile(t)
	if got := w.one(t, 1).Desired(); got != running {
		t.Errorf("new task desired %v after the old one has stopped", got)
	}
}

func TestUpdateStartsFirst(t *testing.T) {
	w := single(t, nil)
	w.startFirst()
	old := w.one(t, 1)
	w.spec(null(2))
	p := w.reconcile(t)
	if !p.WatchesRunning {
		t.Error("does not watch for the new task to run")
	}
	pair := w.live(1)
	if len(pair) != 2 || pair[1].Desired() != running || w.tasks[old.Key].Desired() != running {
		t.Fatalf("want both tasks running:%s", w.print())
	}
	w.assign(pair[1], "b")
	w.report(pair[1], running)
	w.reconcile(t)
	if got := w.one(t, 1); got.Key != pair[1].Key || w.tasks[old.Key].Desired() != shutdown {
		t.Errorf("want the old task ended:%s", w.print())
	}
}

// A task that does not run yet serves no client: it goes before its successor comes,
// which may need its port.
func TestUpdateStartsFirstOnlyWhereOneRuns(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(1)
	w.startFirst()
	w.reconcile(t)
	old := w.one(t, 1)
	w.assign(old, "a")
	w.report(old, musterv1.TaskState_PREPARING)
	w.spec(null(2))
	w.reconcile(t)
	next := w.one(t, 1)
	if next.Key == old.Key || w.tasks[old.Key].Desired() != shutdown || next.Desired() != ready {
		t.Fatalf("want a task that waits for the old one to stop:%s", w.print())
	}
	w.report(old, shutdown)
	w.reconcile(t)
	if got := w.one(t, 1); got.Key != next.Key || got.Desired() != running {
		t.Errorf("the new task does not start:%s", w.print())
	}
}

// If the new task dies first, the old one stays.
func TestUpdateStartsFirstAndFails(t *testing.T) {
	p := &musterv1.RestartPolicy{MaxAttempts: 1, Delay: seconds(1)}
	w := single(t, p)
	w.startFirst()
	w.service.Spec.Update.MaxFailureRatio = 1
	old := w.one(t, 1)
	w.spec(null(2, restart(p)))
	for range 2 {
		w.reconcile(t)
		w.now = w.now.Add(time.Second)
		w.reconcile(t)
		pair := w.live(1)
		if len(pair) != 2 {
			t.Fatalf("%d live tasks, want 2:%s", len(pair), w.print())
		}
		w.assign(pair[1], "b")
		w.report(pair[1], failed)
	}
	w.reconcile(t)
	if got := w.one(t, 1); got.Key != old.Key {
		t.Errorf("the old task did not stay:%s", w.print())
	}
	if w.rollout.State != musterv1.UpdateStatus_COMPLETED || w.rollout.Failures != 1 {
		t.Errorf("rollout %v", w.rollout)
	}
	w.now = w.now.Add(time.Hour)
	if p := w.reconcile(t); !p.Empty() {
		t.Errorf("plan%s", describe(p))
	}
}

func TestRolloutIsTold(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(2)
	w.converge(t)
	w.spec(null(2))
	began := w.now
	w.reconcile(t)
	if r := w.rollout; r.GetState() != musterv1.UpdateStatus_UPDATING || r.StartedAt != began.UnixMilli() || r.SpecVersion != 2 {
		t.Fatalf("rollout %v", r)
	}
	w.now = w.now.Add(time.Second)
	w.converge(t)
	if r := w.rollout; r.State != musterv1.UpdateStatus_COMPLETED || r.CompletedAt != w.now.UnixMilli() || r.StartedAt != began.UnixMilli() {
		t.Errorf("rollout %v", r)
	}
	// Scaling is no update.
	before := w.rollout
	w.replicas(3)
	w.converge(t)
	if w.rollout != before {
		t.Errorf("rollout %v after scaling", w.rollout)
	}
}

func TestUpdateOfNothingIsCompletedAtOnce(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(0)
	w.converge(t)
	w.spec(null(2))
	w.reconcile(t)
	if w.rollout.GetState() != musterv1.UpdateStatus_COMPLETED {
		t.Errorf("rollout %v", w.rollout)
	}
}

func TestUpdateAmidUpdate(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.replicas(3)
	w.converge(t)
	w.spec(null(2))
	w.reconcile(t)
	w.spec(null(3))
	w.converge(t)
	for slot := range uint64(3) {
		if got := w.one(t, slot+1); got.Record.SpecVersion != 3 || got.State() != running {
			t.Errorf("slot %d:%s", slot+1, w.print())
		}
	}
	if w.rollout.State != musterv1.UpdateStatus_COMPLETED || w.rollout.SpecVersion != 3 {
		t.Errorf("rollout %v", w.rollout)
	}
}

// A task that is updated before it has been seen on a node may be on one by
// now.
func TestUpdateOfPendingTaskWaitsAMoment(t *testing.T) {
	w := newWorld()
	w.spec(null(1))
	w.reconcile(t)
	w.spec(null(2))
	p := w.reconcile(t)
	if got := w.one(t, 1).Desired(); got != ready {
		t.Errorf("desired %v, want READY", got)
	}
	if wait := p.Next.Sub(w.now); wait != time.Second {
		t.Errorf("waits %v, want 1s", wait)
	}
	w.now = p.Next
	w.reconcile(t)
	if got := w.one(t, 1).Desired(); got != running {
		t.Errorf("desired %v, want RUNNING", got)
	}
}

func TestEndedTaskOfFormerSpecIsReplacedAtOnce(t *testing.T) {
	w := single(t, nil)
	w.report(w.one(t, 1), failed)
	w.spec(null(2))
	w.reconcile(t)
	if got := w.one(t, 1).Record; got.SpecVersion != 2 || got.DesiredState != running || got.Restarts != 0 {
		t.Errorf("new task %v", got)
	}
}

func TestCleanlyDifferentSpecs(t *testing.T) {
	container := func(auth string, constraints ...string) *musterv1.TaskSpec {
		return &musterv1.TaskSpec{
			Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{
				Image: "hello", PullOptions: &musterv1.PullOptions{RegistryAuth: auth},
			}},
			Placement: &musterv1.Placement{Constraints: constraints},
		}
	}
	tests := []struct {
		name     string
		next     *musterv1.TaskSpec
		label    string
		state    musterv1.TaskState
		replaced bool
	}{
		{"same", container("x"), "", running, false},
		{"placement, and the node meets it", container("x", "ssd"), "ssd", running, false},
		{"placement, and the node does not meet it", container("x", "ssd"), "", running, true},
		{"credentials of a running task", container("y"), "", running, false},
		{"credentials of a task that pulls", container("y"), "", musterv1.TaskState_PREPARING, true},
		{"forced", func() *musterv1.TaskSpec { s := container("x"); s.ForceUpdate++; return s }(), "", running, true},
		{"restart policy", func() *musterv1.TaskSpec { s := container("x"); s.Restart = &musterv1.RestartPolicy{}; return s }(), "", running, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld()
			w.spec(container("x"))
			w.reconcile(t)
			old := w.one(t, 1)
			w.assign(old, "a")
			w.report(old, tt.state)
			w.labels["a"] = tt.label
			w.spec(tt.next)
			w.reconcile(t)
			if got := w.one(t, 1).Key != old.Key; got != tt.replaced {
				t.Errorf("replaced: %t, want %t", got, tt.replaced)
			}
		})
	}
}

func TestUpdateOfFinishedSlotRunsIt(t *testing.T) {
	p := &musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_ON_FAILURE}
	w := single(t, p)
	w.end(t, complete)
	w.spec(null(2, restart(p)))
	w.reconcile(t)
	if w.rollout.GetState() != musterv1.UpdateStatus_UPDATING {
		t.Errorf("rollout %v", w.rollout)
	}
	w.converge(t)
	if got := w.one(t, 1); got.State() != running || w.rollout.State != musterv1.UpdateStatus_COMPLETED {
		t.Errorf("after the update:%s", w.print())
	}
}

func TestUpdateAndLostNodeTogether(t *testing.T) {
	w := single(t, nil)
	old := w.one(t, 1)
	w.nodes[old.NodeID] = plan.Drained
	w.spec(null(2))
	p := w.reconcile(t)
	if got := w.one(t, 1); got.Desired() != ready || got.Record.SpecVersion != 2 {
		t.Errorf("new task %v", got.Record)
	}
	if len(p.Slots[0].Lost) != 1 {
		t.Error("the decision does not name the lost node")
	}
	w.converge(t)
}

func TestEndpointChangesReplaceTasksThatHaveThem(t *testing.T) {
	const host, ingress = musterv1.PortConfig_HOST, musterv1.PortConfig_INGRESS
	ports := func(mode musterv1.PortConfig_PublishMode, published ...uint32) *musterv1.EndpointSpec {
		e := &musterv1.EndpointSpec{}
		for _, p := range published {
			e.Ports = append(e.Ports, &musterv1.PortConfig{TargetPort: 80, PublishedPort: p, PublishMode: mode})
		}
		return e
	}
	moded := func(mode musterv1.EndpointSpec_Mode, e *musterv1.EndpointSpec) *musterv1.EndpointSpec {
		e.Mode = mode
		return e
	}
	local := ports(ingress, 81)
	local.Ports[0].ExternalTraffic = musterv1.PortConfig_LOCAL
	w := single(t, nil)
	for _, c := range []struct {
		name     string
		endpoint *musterv1.EndpointSpec
		replaces bool
	}{
		{"a port of the node", ports(host, 80), true},
		{"another port of the node", ports(host, 81), true},
		{"no port", nil, true},
		{"a name for each task", moded(musterv1.EndpointSpec_DNSRR, &musterv1.EndpointSpec{}), false},
		{"a virtual address", moded(musterv1.EndpointSpec_VIP, &musterv1.EndpointSpec{}), false},
		{"the ingress network", ports(ingress, 80), true},
		{"another port of the mesh", ports(ingress, 81), false},
		{"only tasks of the node", local, false},
		{"two ports of the mesh", ports(0, 81, 82), false},
		{"another drain delay", &musterv1.EndpointSpec{DrainDelay: durationpb.New(time.Second), Ports: ports(0, 81).Ports}, false},
		{"a port of the node beside", &musterv1.EndpointSpec{Ports: append(ports(0, 81).Ports, ports(host, 90).Ports...)}, true},
		{"the port of the node only", ports(host, 90), true},
	} {
		old := w.one(t, 1)
		w.leave()
		w.service.Spec.Endpoint = c.endpoint
		w.converge(t)
		if replaced := w.one(t, 1).Key != old.Key; replaced != c.replaces {
			t.Errorf("%s: replaced: %v, want %v", c.name, replaced, c.replaces)
		}
		if w.rollout.GetState() != musterv1.UpdateStatus_COMPLETED || w.rollout.SpecVersion != w.service.SpecVersion {
			t.Errorf("%s: rollout %v", c.name, w.rollout)
		}
	}
}
