package lifecycle

import (
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/workerd/internal/bounds"
)

// Status is what a worker knows of a task. Copies share what pointers and
// slices lead to; that is never changed, only replaced.
type Status struct {
	State   musterv1.TaskState
	At      time.Time
	Message string
	Error   string
	Runtime *musterv1.RuntimeStatus
	Ports   []*musterv1.PortConfig
	// Networks is the task's place on its networks.
	Networks []*musterv1.NetworkAttachment
	// Containers are the containers of a task with a group.
	Containers  []*musterv1.ContainerStatus
	NodeToBlame bool
	// Times holds the moments at which the states were reached that the task
	// went through here, in order.
	Times []Time
}

// Time is the moment at which a state was reached.
type Time struct {
	State musterv1.TaskState
	At    time.Time
}

// Move brings the task to a later state. A state that is not later is a mistake
// of the caller, and nothing is changed. Where a clock has been set back since the
// state before, or an executor's is behind, the new state has the time of that.
func (s *Status) Move(to musterv1.TaskState, at time.Time, message string) {
	if to <= s.State {
		return
	}
	// Others see what the clock says, and not how much time has really passed.
	if at = at.Round(0); at.Before(s.At) {
		at = s.At
	}
	s.State = to
	s.At = at
	s.Message = message
	s.Error = ""
	if s.Times == nil {
		// From ACCEPTED to an end: enough for a life.
		s.Times = make([]Time, 0, 6)
	}
	// A copy that was handed out must not see the new element, nor does it: it
	// has a length of its own.
	s.Times = append(s.Times, Time{to, at})
}

// End sets what the executor says of a task that has ended. If it says nothing, only
// what is true of an ended task is left of what it said before.
func (s *Status) End(runtime *musterv1.RuntimeStatus) {
	if last := s.Runtime; runtime == nil && last != nil {
		runtime = &musterv1.RuntimeStatus{Id: last.Id, ExitCode: last.ExitCode, OomKilled: last.OomKilled}
	}
	s.Runtime = runtime
}

// Bound clips texts and ports to what may be stored and reported.
func (s *Status) Bound() {
	s.Message, s.Error = bounds.Text(s.Message, nodereport.MaxStatusText), bounds.Text(s.Error, nodereport.MaxStatusText)
	s.Runtime, s.Ports = bounds.Runtime(s.Runtime), bounds.Ports(s.Ports)
}

// Settled says whether the task is likely to stay as it is for a while, so that
// the managers should hear of it at once.
func (s *Status) Settled(desired musterv1.TaskState) bool {
	return s.Error != "" || s.State >= musterv1.TaskState_RUNNING || s.State >= desired
}

// Report returns the status as a dispatcher is told it.
func (s *Status) Report(id string) *dispatcherv1.ReportedStatus {
	times := make([]*musterv1.TaskTime, len(s.Times))
	for i, t := range s.Times {
		times[i] = &musterv1.TaskTime{State: t.State, At: timestamppb.New(t.At)}
	}
	return &dispatcherv1.ReportedStatus{
		TaskId: id,
		Status: &musterv1.TaskStatus{
			State:     s.State,
			Timestamp: timestamppb.New(s.At),
			Message:   s.Message,
			Error:     s.Error,
			Runtime:   s.Runtime,
			Ports:     s.Ports,
			Networks:  s.Networks,

			Containers: s.Containers,
		},
		Times:       times,
		NodeToBlame: s.NodeToBlame,
	}
}

// FromReport returns the status that a report was made of.
func FromReport(r *dispatcherv1.ReportedStatus) Status {
	status := r.GetStatus()
	s := Status{
		State:       status.GetState(),
		At:          status.GetTimestamp().AsTime(),
		Message:     status.GetMessage(),
		Error:       status.GetError(),
		Runtime:     status.GetRuntime(),
		Ports:       slices.Clone(status.GetPorts()),
		Networks:    status.GetNetworks(),
		Containers:  status.GetContainers(),
		NodeToBlame: r.GetNodeToBlame(),
	}
	for _, t := range r.GetTimes() {
		s.Times = append(s.Times, Time{t.GetState(), t.GetAt().AsTime()})
	}
	s.Bound()
	return s
}
