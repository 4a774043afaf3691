package simulation

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
)

// The containers beside the main one of a task, by their names.
const (
	initContainer     = "before"
	sidecarContainer  = "beside"
	postStopContainer = "after"
)

// addGroup gives one task in three a group, and the others none.
func addGroup(r *rand.Rand, task *musterv1.TaskSpec) {
	task.Group = nil
	if !one(r, 3) {
		return
	}
	if one(r, 2) {
		task.Group = append(task.Group, groupContainer(initContainer, musterv1.GroupContainer_INIT, map[string]any{"runFor": "800ms"}))
	}
	sidecar := groupContainer(sidecarContainer, musterv1.GroupContainer_SIDECAR, pick(r, []map[string]any{nil, {"startDelay": "300ms"}}))
	if one(r, 2) {
		sidecar.Resources = &musterv1.ResourceRequirements{Reservations: &musterv1.Resources{NanoCpus: int64(1+r.IntN(5)) * 1e8}}
	}
	task.Group = append(task.Group, sidecar)
	if one(r, 2) {
		task.Group = append(task.Group, groupContainer(postStopContainer, musterv1.GroupContainer_POST_STOP, map[string]any{"runFor": "700ms"}))
	}
}

func groupContainer(name string, role musterv1.GroupContainer_Role, script map[string]any) *musterv1.GroupContainer {
	return &musterv1.GroupContainer{Name: name, Role: role, Runtime: &musterv1.GroupContainer_Generic{Generic: runtime(script).Generic}}
}

// reserved returns what the containers of a task reserve together: the main one and the
// sidecars run at one time, and the others each alone.
func reserved(task *musterv1.TaskSpec) (cpus, memory int64) {
	main := task.GetResources().GetReservations()
	cpus, memory = main.GetNanoCpus(), main.GetMemoryBytes()
	var alone musterv1.Resources
	for _, c := range task.GetGroup() {
		r := c.GetResources().GetReservations()
		if c.Role == musterv1.GroupContainer_SIDECAR {
			cpus, memory = cpus+r.GetNanoCpus(), memory+r.GetMemoryBytes()
		} else {
			alone.NanoCpus, alone.MemoryBytes = max(alone.NanoCpus, r.GetNanoCpus()), max(alone.MemoryBytes, r.GetMemoryBytes())
		}
	}
	return max(cpus, alone.NanoCpus), max(memory, alone.MemoryBytes)
}

// containerOf splits the id of a container beside the main one, as executors have it.
func containerOf(id string) (task, container string, ok bool) {
	task, container, ok = strings.Cut(id, "-")
	return task, container, ok && slices.Contains([]string{initContainer, sidecarContainer, postStopContainer}, container)
}

// ordered checks that the containers of each group run in the order of their roles.
func (p *picture) ordered() {
	for node, ids := range p.beside {
		for _, id := range ids {
			task, container, _ := containerOf(id)
			if container != sidecarContainer && slices.Contains(p.running[node], task) {
				p.fault("container %s of task %s runs on %s beside the main one", container, short(task), node)
			}
			if p.observer.known(task).service == "" {
				p.fault("%s runs container %s of task %s, which was never created", node, container, task)
			}
		}
	}
}

// groupsSettled wants the sidecars of tasks that run, and no other container beside main
// ones, to run, and the records to say so.
func (p *picture) groupsSettled() {
	want := map[string][]string{}
	for _, tasks := range p.tasks {
		for _, t := range tasks {
			spec := p.task(t.Record.SpecDigest)
			if len(spec.GetGroup()) == 0 || t.State() != musterv1.TaskState_RUNNING || stateOf(p.nodes[t.NodeID]) != musterv1.NodeStatus_READY {
				continue
			}
			want[t.NodeID] = append(want[t.NodeID], t.ID+"-"+sidecarContainer)
			p.containersReported(t, spec)
		}
	}
	for name, n := range p.cluster.nodes {
		if _, up, _, _ := n.state(); !up {
			continue
		}
		if slices.Sort(want[name]); !slices.Equal(want[name], p.beside[name]) {
			p.fault("node %s runs containers %v beside main ones, want %v", name, p.beside[name], want[name])
		}
	}
}

// containersReported checks the states of the containers of a task that runs.
func (p *picture) containersReported(t *state.Task, spec *musterv1.TaskSpec) {
	wants := map[string]musterv1.TaskState{"main": musterv1.TaskState_RUNNING}
	for _, c := range spec.Group {
		switch c.Role {
		case musterv1.GroupContainer_INIT:
			wants[c.Name] = musterv1.TaskState_COMPLETE
		case musterv1.GroupContainer_SIDECAR:
			wants[c.Name] = musterv1.TaskState_RUNNING
		}
	}
	got := map[string]musterv1.TaskState{}
	for _, c := range t.Status.GetContainers() {
		got[c.Name] = c.State
	}
	for name, state := range wants {
		if got[name] != state {
			p.fault("container %s of task %s is %v by the records, want %v", name, short(t.ID), got[name], state)
		}
	}
}

// forgottenSidecars says that sidecars run, and does not start them.
func forgottenSidecars() Mutation {
	return falseStartsOf("sidecars that never started", func(id string) bool {
		_, container, _ := containerOf(id)
		return container == sidecarContainer
	})
}

// impatientMains says that init containers have ended while they run.
func impatientMains() Mutation {
	return Mutation{Name: "main containers that do not wait", Executor: func(inner *null.Executor) sdk.Executor { return &impatient{inner} }}
}

type impatient struct{ *null.Executor }

func (e *impatient) Wait(ctx context.Context, ref sdk.Ref) (*sdk.Ended, error) {
	if _, container, _ := containerOf(ref.TaskID); container == initContainer {
		return &sdk.Ended{}, nil
	}
	return e.Executor.Wait(ctx, ref)
}
