// Package groups runs the containers of a task group as one task.
//
// A [Group] is an [executor.Executor] for one task. Each container of the group is a
// task of its own to the executor that holds them all: the main container has the id of
// the group's task, the others an id derived from it ([ContainerID]). The main container
// is prepared first and removed last, because the others share its network namespace.
//
// A group keeps nothing that must survive it: calls to executors may be repeated, so a
// call to a group may be, too. Its handle holds the handles of the containers.
package groups

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/internal/taskspec"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/bounds"
)

// Main is the name of the main container.
const Main = "main"

const (
	initRole     = musterv1.GroupContainer_INIT
	sidecarRole  = musterv1.GroupContainer_SIDECAR
	postStopRole = musterv1.GroupContainer_POST_STOP
	mainRole     = musterv1.GroupContainer_ROLE_UNSPECIFIED
)

// ContainerID returns what a container of a task is called by its executor.
func ContainerID(task, container string) string {
	if container == Main {
		return task
	}
	return task + "-" + container
}

// ContainerIDs returns the ids of the containers of a task beside the main one.
func ContainerIDs(task string, spec *musterv1.TaskSpec) []string {
	ids := make([]string, len(spec.GetGroup()))
	for i, c := range spec.GetGroup() {
		ids[i] = ContainerID(task, c.GetName())
	}
	return ids
}

// Config is what a group is made of.
type Config struct {
	// Task is the main container as the executor is told of it. Its spec has the group.
	Task *executor.Task
	// Network is that of a task that is attached to networks and has been prepared.
	Network *executor.TaskNetwork
	// Executor holds all containers.
	Executor *executor.Described
	// Handle is what the worker keeps of the group.
	Handle []byte
	// Begun is true if Start may have been called before.
	Begun bool
	// Runtime is what was last reported of the main container.
	Runtime *musterv1.RuntimeStatus
	// Known are the statuses of the containers as they were last reported.
	Known []*musterv1.ContainerStatus
}

// Group is one task with a group.
type Group struct {
	cfg  Config
	exec executor.Executor
	// main is the main container, and others are those of the group in their order.
	main   *container
	others []*container

	mu sync.Mutex
	// changed is closed when a status or a message has changed.
	changed chan struct{}
	// message and problem say what Start waits for, and why that takes long.
	message, problem string
}

var _ executor.Executor = (*Group)(nil)

// container is one container of a group. Group.mu guards all that changes.
type container struct {
	name    string
	role    musterv1.GroupContainer_Role
	task    *executor.Task
	timeout time.Duration
	handle  []byte
	// status is never changed, only replaced.
	status *musterv1.ContainerStatus
}

// New returns a group.
func New(cfg Config) *Group {
	g := &Group{cfg: cfg, exec: cfg.Executor.Executor, changed: make(chan struct{})}
	kept := decode(cfg.Handle)
	add := func(c *container) *container {
		c.handle = kept.of(c.name)
		i := slices.IndexFunc(cfg.Known, func(s *musterv1.ContainerStatus) bool { return s.GetName() == c.name })
		if i >= 0 {
			c.status = cfg.Known[i]
		} else {
			c.status = &musterv1.ContainerStatus{Name: c.name, Role: c.role, State: musterv1.TaskState_ACCEPTED, Timestamp: timestamppb.Now()}
		}
		return c
	}
	g.main = add(&container{name: Main, role: mainRole, task: cfg.Task})
	for _, c := range cfg.Task.Spec.GetGroup() {
		timeout := defaults.PostStopTimeout
		if d := c.GetTimeout(); d != nil {
			timeout = d.AsDuration()
		}
		g.others = append(g.others, add(&container{name: c.GetName(), role: c.GetRole(), task: taskOf(cfg.Task, c), timeout: timeout}))
	}
	return g
}

// Described returns the executor of the group's containers with the group in its place.
func (g *Group) Described() *executor.Described { return g.cfg.Executor.With(g, "observe") }

// taskOf returns what the executor is told of a container beside the main one.
func taskOf(main *executor.Task, c *musterv1.GroupContainer) *executor.Task {
	spec := taskspec.OfGroup(c)
	spec.LogDriver, spec.Networks = main.Spec.GetLogDriver(), main.Spec.GetNetworks()
	return &executor.Task{
		ID: ContainerID(main.ID, c.GetName()), Name: main.Name + "." + c.GetName(),
		ServiceID: main.ServiceID, ServiceName: main.ServiceName, Slot: main.Slot, NodeID: main.NodeID, ServiceLabels: main.ServiceLabels,
		Spec: spec, Networked: main.Networked, SharesNetworkOf: main.ID, Files: main.GroupFiles[c.GetName()],
	}
}

// ofRole returns the containers of a role, in their order.
func (g *Group) ofRole(role musterv1.GroupContainer_Role) []*container {
	return slices.DeleteFunc(slices.Clone(g.others), func(c *container) bool { return c.role != role })
}

// reversed returns the containers of a role in reverse order.
func (g *Group) reversed(role musterv1.GroupContainer_Role) []*container {
	all := g.ofRole(role)
	slices.Reverse(all)
	return all
}

// ref names a container for its executor.
func (g *Group) ref(c *container) executor.Ref {
	g.mu.Lock()
	defer g.mu.Unlock()
	return executor.Ref{TaskID: c.task.ID, Handle: c.handle}
}

// keep notes a newer handle of a container.
func (g *Group) keep(c *container, handle []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c.handle = handle
}

// Statuses returns the statuses of the containers, the main one first.
func (g *Group) Statuses() []*musterv1.ContainerStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.statuses()
}

func (g *Group) statuses() []*musterv1.ContainerStatus {
	all := []*musterv1.ContainerStatus{g.main.status}
	for _, c := range g.others {
		all = append(all, c.status)
	}
	return all
}

// state returns the state of a container.
func (g *Group) state(c *container) musterv1.TaskState {
	g.mu.Lock()
	defer g.mu.Unlock()
	return c.status.GetState()
}

// update changes the status of a container.
func (g *Group) update(c *container, change func(s *musterv1.ContainerStatus)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	next := proto.CloneOf(c.status)
	change(next)
	next.Error = bounds.Text(next.GetError(), nodereport.MaxContainerText)
	next.Runtime = bounds.ContainerRuntime(next.GetRuntime())
	if proto.Equal(next, c.status) {
		return
	}
	c.status = next
	g.notify()
}

// notify wakes what observes the group. The caller holds mu.
func (g *Group) notify() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// move brings a container to a state.
func (g *Group) move(c *container, to musterv1.TaskState, change func(s *musterv1.ContainerStatus)) {
	g.update(c, func(s *musterv1.ContainerStatus) {
		if s.State != to {
			s.State, s.Timestamp = to, timestamppb.Now()
		}
		s.Error = ""
		if change != nil {
			change(s)
		}
	})
}

// ended notes how a container has ended by itself.
func (g *Group) ended(c *container, res *executor.Ended) {
	to, reason := musterv1.TaskState_COMPLETE, Failure(res)
	if reason != "" {
		to = musterv1.TaskState_FAILED
	}
	g.move(c, to, func(s *musterv1.ContainerStatus) { s.Runtime, s.Error = res.Runtime, reason })
}

// Failure returns why a container that ended counts as failed, or "" if it does not.
func Failure(res *executor.Ended) string {
	code := res.Runtime.GetExitCode()
	switch {
	case res.Error != "":
		return res.Error
	case res.Runtime.GetOomKilled():
		return fmt.Sprintf("out of memory, exit (%d)", code)
	case code != 0:
		return fmt.Sprintf("non-zero exit (%d)", code)
	}
	return ""
}

// over reports whether a container has ended.
func over(state musterv1.TaskState) bool { return state > musterv1.TaskState_RUNNING }

// say notes what Start waits for.
func (g *Group) say(message, problem string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.message != message || g.problem != problem {
		g.message, g.problem = message, problem
		g.notify()
	}
}

// about adds the name of the container to an error, which stays what it is for
// [executor.ErrorOf].
func about(c *container, err error) error {
	if err == nil || c.role == mainRole {
		return err
	}
	return fmt.Errorf("%s %q: %w", noun(c), c.name, err)
}

// noun says what a container is.
func noun(c *container) string {
	switch c.role {
	case initRole:
		return "init container"
	case sidecarRole:
		return "sidecar"
	case postStopRole:
		return "post-stop container"
	}
	return "container"
}

// lasting reports whether a further attempt cannot mend an error.
func lasting(err error) bool {
	e := executor.ErrorOf(err)
	return e != nil && !e.Temporary
}

// Patience returns how long Shutdown may take beyond the grace period of the main
// container.
func (g *Group) Patience() time.Duration {
	var sum time.Duration
	for _, c := range g.others {
		switch c.role {
		case sidecarRole:
			sum += grace(c)
		case postStopRole:
			sum += c.timeout
		}
	}
	return sum
}

// grace returns how long a container is given to end.
func grace(c *container) time.Duration {
	if d := c.task.Spec.GetContainer().GetStopGracePeriod(); d != nil {
		return d.AsDuration()
	}
	return defaults.StopGracePeriod
}

// worse returns the worse of two results of health checks, of which either may be nil.
func worse(a, b *musterv1.Health) *musterv1.Health {
	rank := func(h *musterv1.Health) int {
		return map[musterv1.Health_State]int{musterv1.Health_HEALTHY: 1, musterv1.Health_STARTING: 2, musterv1.Health_UNHEALTHY: 3}[h.GetState()]
	}
	if cmp.Compare(rank(a), rank(b)) >= 0 {
		return a
	}
	return b
}
