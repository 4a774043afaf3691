package objects

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/taskspec"
)

// The messages made here share parts with records: they are for sending, and
// must not be changed.

// ServiceMessage returns a service as users see it.
func (r *Reader) ServiceMessage(s *Service) *musterv1.Service {
	m := &musterv1.Service{
		Id:          s.ID,
		Meta:        meta(s.Version, s.Record.CreatedAt, s.Record.UpdatedAt),
		Spec:        r.serviceSpec(s.Record.Spec, s.Record.TaskDigest),
		SpecVersion: s.Record.SpecVersion,
		Endpoint:    s.Endpoint.GetEndpoint(),
		Status: &musterv1.ServiceStatus{
			DesiredTasks:  s.Status.Desired,
			RunningTasks:  s.Status.Running,
			PendingReason: cmp.Or(s.Status.Pending, s.Endpoint.GetError(), r.unfinished(s)),
			Converged:     s.Status.Converged(),
			FinishedTasks: s.Status.Finished,
			FailingTasks:  s.Status.Failing,
		},
	}
	if s.Record.PreviousSpec != nil {
		m.PreviousSpec = r.serviceSpec(s.Record.PreviousSpec, s.Record.PreviousTaskDigest)
	}
	// What became of a former update is not to be taken for what becomes of this one.
	if s.Rollout != nil && state.IsCurrent(s.Record, s.Rollout) {
		m.UpdateStatus = &musterv1.UpdateStatus{
			State:       s.Rollout.State,
			StartedAt:   stamp(s.Rollout.StartedAt),
			CompletedAt: stamp(s.Rollout.CompletedAt),
			Message:     s.Rollout.Message,
		}
		if s.Rollout.RolledBack {
			follows := state.EffectiveSpec(s.Record, s.Rollout)
			m.EffectiveSpec = r.serviceSpec(s.Record.Spec, follows.Digest)
			m.EffectiveSpec.Endpoint = follows.Endpoint
		}
	}
	return m
}

// serviceSpec puts the parts of a spec together that are stored apart.
func (r *Reader) serviceSpec(spec *musterv1.ServiceSpec, digest []byte) *musterv1.ServiceSpec {
	return &musterv1.ServiceSpec{
		Name: spec.GetName(), Labels: spec.GetLabels(), Task: r.TaskSpec(digest), Mode: spec.GetMode(),
		Update: spec.GetUpdate(), Rollback: spec.GetRollback(), Endpoint: spec.GetEndpoint(),
		DependsOn: spec.GetDependsOn(),
	}
}

// TaskSpec returns a task spec by its digest, without what is write-only; nil
// if it is gone.
func (r *Reader) TaskSpec(digest []byte) *musterv1.TaskSpec {
	if task := r.redacted[string(digest)]; task != nil {
		return task
	}
	e, ok := r.v.tables.Specs.Get(r.v.now, state.SpecKey(digest))
	if !ok {
		r.lacksSpec = r.lacksSpec || len(digest) > 0
		return nil
	}
	open, err := r.v.specs.OpenSpec(e.Key, e.Value)
	if err != nil {
		// Stand-ins are not to be taken for values.
		r.sealedSpec = err
		return nil
	}
	task := Redact(open)
	r.redacted[string(digest)] = task
	return task
}

// StoredSpec returns a task spec with stand-ins for values that are sealed, for those who do
// not need them; nil if it is gone.
func (r *Reader) StoredSpec(digest []byte) *musterv1.TaskSpec { return r.v.taskSpec(string(digest)) }

// Redact returns a task spec without what is write-only.
func Redact(task *musterv1.TaskSpec) *musterv1.TaskSpec {
	secret := func(c *musterv1.ContainerSpec) bool { return c.GetPullOptions().GetRegistryAuth() != "" }
	if !slices.ContainsFunc(taskspec.Containers(task), secret) {
		return task
	}
	task = proto.CloneOf(task)
	for _, c := range taskspec.Containers(task) {
		if secret(c) {
			c.PullOptions.RegistryAuth = ""
		}
	}
	return task
}

// TaskMessage returns a task as users see it.
func (r *Reader) TaskMessage(t *Task) *musterv1.Task {
	rec := t.Record
	m := &musterv1.Task{
		Id:           t.ID,
		ServiceId:    t.ServiceID,
		ServiceName:  r.ServiceName(t.ServiceID),
		Slot:         rec.Slot,
		NodeId:       node(t),
		Spec:         r.TaskSpec(rec.SpecDigest),
		SpecVersion:  rec.SpecVersion,
		DesiredState: rec.DesiredState,
		JobIteration: rec.JobIteration,
		Name:         r.TaskName(t),
	}
	updated := max(rec.CreatedAt, rec.DesiredAt)
	m.Status = &musterv1.TaskStatus{State: t.State(), Timestamp: stamp(rec.CreatedAt)}
	m.Timeline = append(m.Timeline, moment(musterv1.TaskState_PENDING, rec.CreatedAt))
	if a := t.Assignment; a != nil {
		updated = max(updated, a.AssignedAt)
		m.Timeline = append(m.Timeline, moment(musterv1.TaskState_ASSIGNED, a.AssignedAt))
		m.Status.Timestamp = stamp(a.AssignedAt)
		m.AssignedGenericResources = a.Generic
		if len(a.Ports) > 0 {
			m.Endpoint = &musterv1.Endpoint{Ports: a.Ports}
		}
	} else if waits := r.waiting(t); waits != "" {
		m.Status.Message = waits
	} else {
		m.Status.Message = "waiting for a node"
		m.Status.Error = r.pending(t)
	}
	if s := t.Status; s != nil {
		updated = max(updated, s.AppliedAt, s.At)
		m.Status.Timestamp, m.Status.Message, m.Status.Error = stamp(s.At), s.Message, s.Error
		m.Status.Runtime, m.Status.Ports, m.Networks, m.Status.Containers = s.Runtime, s.Ports, s.Networks, s.Containers
		for st := range state.Times(s) {
			if st.State > musterv1.TaskState_ASSIGNED {
				m.Timeline = append(m.Timeline, moment(st.State, st.At))
			}
		}
	}
	m.Meta = meta(t.version(), rec.CreatedAt, updated)
	return m
}

// pending says why a task has no node yet, if the scheduler has said so.
func (r *Reader) pending(t *Task) string {
	if !live(t) {
		return ""
	}
	e, ok := r.v.tables.Placements.Get(r.v.now, state.PlacementKey(t.ServiceID, t.Record.SpecDigest))
	if !ok || e.Value.Pending == 0 {
		return ""
	}
	return e.Value.Reason
}

// ServiceName returns a service's name, or the last one of a service that was
// removed. It is the id if the name is not known.
func (r *Reader) ServiceName(id string) string {
	if s, ok := r.v.services.Get(id); ok {
		return s.Record.GetSpec().GetName()
	}
	if e, ok := r.v.tables.Names.Get(r.v.now, state.RemovedNameKey(id)); ok && e.Value.Name != "" {
		return e.Value.Name
	}
	return id
}

// HasTasks reports whether a service, or one that was removed, has tasks.
func (r *Reader) HasTasks(service string) bool {
	found := false
	r.ServiceTasks(service, "", func(*Task) bool {
		found = true
		return false
	})
	return found
}

// TaskName returns "service.slot.id", or "service.node.id" for a task of a
// global service.
func (r *Reader) TaskName(t *Task) string { return r.TaskSource(t) + "." + t.ID }

// TaskSource returns the name without the id.
func (r *Reader) TaskSource(t *Task) string {
	place := t.Record.NodeId
	if t.Record.Slot > 0 {
		place = strconv.FormatUint(t.Record.Slot, 10)
	}
	return r.ServiceName(t.ServiceID) + "." + place
}

// node is where a task runs or is to run.
func node(t *Task) string {
	if t.NodeID != "" {
		return t.NodeID
	}
	return t.Record.NodeId
}

// NodeMessage returns a node as users see it.
func (r *Reader) NodeMessage(n *Node) *musterv1.Node {
	m := &musterv1.Node{
		Id:          n.ID,
		Meta:        meta(n.Version, n.State.CreatedAt, max(n.State.CreatedAt, n.Record.GetUpdatedAt())),
		Spec:        n.Spec(),
		Description: n.State.Description,
		Status: &musterv1.NodeStatus{
			State: n.State.State, Message: n.State.Message, Address: n.State.Address, Since: stamp(n.State.Since),
		},
	}
	if l := r.v.loads[n.ID]; l != nil {
		m.TaskCount = l.tasks
		m.Reserved = &musterv1.Resources{NanoCpus: l.nanoCPUs, MemoryBytes: l.memory}
	}
	return m
}

// ClusterMessage returns the cluster's settings, and how much of what there
// is.
func (r *Reader) ClusterMessage(c *Cluster) *musterv1.Cluster {
	m := &musterv1.Cluster{
		Id:   state.ClusterID,
		Meta: meta(c.Version, c.Record.CreatedAt, c.Record.UpdatedAt),
		Spec: c.Record.Spec,
		Status: &musterv1.ClusterStatus{
			Services: uint64(r.v.services.Len()), Tasks: uint64(r.v.tasks.Len()), Nodes: uint64(r.v.nodes.Len()),
		},
	}
	if m.Spec == nil {
		m.Spec = &musterv1.ClusterSpec{}
	}
	for _, s := range r.v.counts {
		for _, n := range s.running {
			m.Status.RunningTasks += n
		}
	}
	r.Nodes("", func(n *Node) bool {
		if n.State.State == musterv1.NodeStatus_READY {
			m.Status.ReadyNodes++
		}
		return true
	})
	return m
}

// NodeSummary counts the nodes.
func (r *Reader) NodeSummary() *musterv1.NodeSummary {
	m := &musterv1.NodeSummary{Total: uint64(r.v.nodes.Len())}
	r.Nodes("", func(n *Node) bool {
		switch n.State.State {
		case musterv1.NodeStatus_READY:
			m.Ready++
		case musterv1.NodeStatus_DOWN:
			m.Down++
		default:
			m.Other++
		}
		if a := n.Record.GetSpec().GetAvailability(); a == musterv1.NodeSpec_PAUSE || a == musterv1.NodeSpec_DRAIN {
			m.Unavailable++
		}
		return true
	})
	return m
}

func meta(version uint64, created, updated int64) *musterv1.Meta {
	return &musterv1.Meta{Version: version, CreatedAt: stamp(created), UpdatedAt: stamp(updated)}
}

// stamp converts a record's time; 0 means that there is none.
func stamp(ms int64) *timestamppb.Timestamp {
	if ms == 0 {
		return nil
	}
	return timestamppb.New(time.UnixMilli(ms))
}

func moment(s musterv1.TaskState, ms int64) *musterv1.TaskTime {
	return &musterv1.TaskTime{State: s, At: stamp(ms)}
}
