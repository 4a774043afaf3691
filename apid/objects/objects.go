package objects

import (
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// Service is a service with what its orchestrator and allocator say of it.
type Service struct {
	ID string
	// Version is that of the user's record.
	Version  uint64
	Record   *recordv1.Service
	Rollout  *recordv1.Rollout
	Endpoint *recordv1.Endpoint
	Status   Status

	rolloutVersion, endpointVersion uint64
}

// Status counts a service's tasks.
type Status struct {
	Desired, Running uint64
	// RunningCurrent are those of the current task spec.
	RunningCurrent uint64
	// Live are the tasks that are meant to run, however far they are.
	Live uint64
	// Finished are the slots whose last task has ended for good.
	Finished uint64
	// Failing are the tasks that do not run, after several early failures in a row.
	Failing uint64
	Pending string
}

// Converged reports whether as many tasks run as should, all of the current
// spec, and no others are meant to.
func (s Status) Converged() bool {
	return s.Running == s.Desired && s.RunningCurrent == s.Running && s.Live == s.Running
}

// same reports whether nothing that a user sees has changed.
func (s *Service) same(o *Service) bool {
	return s.Version == o.Version && s.rolloutVersion == o.rolloutVersion &&
		s.endpointVersion == o.endpointVersion && s.Status == o.Status
}

// Task is a task with its assignment and status.
type Task struct{ *state.Task }

// keep takes over what was known of the task and is missing now. A task's
// assignment and status are removed only once the task is, but tables are
// followed each for itself, so their end may be seen first: the task is about to
// go, and has not gone back to where it has no node.
func (t *Task) keep(old *Task) {
	if t.Assignment == nil && old.Assignment != nil {
		t.NodeID, t.Assignment, t.AssignmentVersion = old.NodeID, old.Assignment, old.AssignmentVersion
	}
	if t.Status == nil && old.Status != nil && t.NodeID == old.NodeID {
		t.Status, t.StatusVersion = old.Status, old.StatusVersion
	}
}

// version grows with each change of any of a task's records. Records of a task
// are not removed before the task is, as keep sees to, so their sum never falls.
func (t *Task) version() uint64 { return t.Version + t.AssignmentVersion + t.StatusVersion }

// Node is a node as it describes itself, with what an operator says of it.
type Node struct {
	ID string
	// Version is that of the operator's record, 0 if there is none.
	Version uint64
	// Record is nil if there is none.
	Record *recordv1.Node
	State  *recordv1.NodeState

	stateVersion uint64
}

// Hostname is the name by which people call the node.
func (n *Node) Hostname() string { return n.State.GetDescription().GetHostname() }

// Spec returns what an operator says of the node, defaults filled in.
func (n *Node) Spec() *musterv1.NodeSpec {
	spec := &musterv1.NodeSpec{
		Labels:       n.Record.GetSpec().GetLabels(),
		Availability: n.Record.GetSpec().GetAvailability(),
		Role:         n.Record.GetSpec().GetRole(),
	}
	if spec.Availability == musterv1.NodeSpec_AVAILABILITY_UNSPECIFIED {
		spec.Availability = musterv1.NodeSpec_ACTIVE
	}
	if spec.Role == musterv1.NodeSpec_ROLE_UNSPECIFIED {
		spec.Role = musterv1.NodeSpec_WORKER
	}
	return spec
}

func (n *Node) same(o *Node) bool {
	return n.Version == o.Version && n.stateVersion == o.stateVersion
}

// Cluster is the cluster's settings.
type Cluster struct {
	// Version is 0 until the settings are changed.
	Version uint64
	Record  *recordv1.Cluster
}

func defaultCluster() *Cluster { return &Cluster{Record: &recordv1.Cluster{}} }
