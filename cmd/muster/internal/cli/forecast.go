package cli

import (
	"fmt"
	"slices"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// How long a wait continues although a service cannot converge without a change from
// outside. Short troubles, such as a daemon that restarts, end nothing.
const (
	// failingPatience applies once failing and finished tasks account for every
	// task that does not run.
	failingPatience = time.Second
	// unfitPatience applies while no node fits tasks that wait for one, and no
	// further task starts to run.
	unfitPatience = 15 * time.Second
	// preparingPatience applies while a task that is being prepared shows an error, and
	// no further task starts to run.
	preparingPatience = time.Minute
	// momentaryWait is how long tasks may wait for a node before the reason is shown.
	momentaryWait = time.Second
	// quietPatience is how long nothing may change before the cluster is asked
	// whether a daemon is missing, and the time between two such questions.
	quietPatience = 5 * time.Second
	// missingPatience applies while a daemon is missing that must act next.
	missingPatience = 10 * time.Second
)

// verdict is what a wait can expect of a service.
type verdict int

const (
	mayConverge verdict = iota
	tasksFail
	tasksEnded
	noNodeFits
	preparationFails
	daemonMissing
)

// forecast decides whether a service may still converge. It sees the service after
// every change and decides from counts that the server keeps, so that a watch that
// is opened again changes nothing.
type forecast struct {
	// keepWaiting says that the wait never ends early.
	keepWaiting bool
	// rollout says that an update under way decides itself what failures mean.
	rollout bool
	// version is the least version of the service that is waited for.
	version uint64

	// moved is when the service or a task of it changed last, and asked is when the
	// cluster was asked last.
	moved, asked time.Time
	// missing is the daemon that must act next and has no instance, or "".
	missing string
	// most is the highest number of running tasks seen while tasks waited.
	most                              uint64
	failing, unfit, preparing, absent spell
	// erring holds since when tasks that are being prepared show an error, and ran how
	// many tasks have run.
	erring map[string]time.Time
	ran    uint64
}

// task notes whether a task that is being prepared shows an error.
func (o *forecast) task(t *musterv1.Task, now time.Time) {
	if t.Status.GetState() != musterv1.TaskState_PREPARING || t.Status.GetError() == "" {
		delete(o.erring, t.Id)
	} else if _, known := o.erring[t.Id]; !known {
		o.erring[t.Id] = now
	}
}

// tasks notes all tasks that are being prepared.
func (o *forecast) tasks(all []*musterv1.Task, now time.Time) {
	before := o.erring
	o.erring = map[string]time.Time{}
	for _, t := range all {
		since, known := before[t.Id]
		if !known {
			since = now
		}
		o.task(t, since)
	}
}

// notePreparing finds the task that has shown its error for the longest time, since the
// last task started to run.
func (o *forecast) notePreparing(running uint64, now time.Time) {
	if running > o.ran {
		for id := range o.erring {
			o.erring[id] = now
		}
	}
	o.ran, o.preparing = running, spell{}
	for _, since := range o.erring {
		if o.preparing.since.IsZero() || since.Before(o.preparing.since) {
			o.preparing.since = since
		}
	}
}

// spell is the time for which something has been so.
type spell struct{ since time.Time }

// note begins the spell, or ends it.
func (s *spell) note(holds bool, now time.Time) {
	switch {
	case !holds:
		s.since = time.Time{}
	case s.since.IsZero():
		s.since = now
	}
}

// left returns how much of the patience is left, and whether the spell lasts.
func (s *spell) left(patience time.Duration, now time.Time) (time.Duration, bool) {
	return s.since.Add(patience).Sub(now), !s.since.IsZero()
}

// change notes that the service or one of its tasks has changed.
func (o *forecast) change(now time.Time) {
	o.moved, o.missing = now, ""
	o.absent.note(false, now)
}

// forget starts over, for a service that has converged for a moment.
func (o *forecast) forget() { o.failing, o.unfit, o.absent = spell{}, spell{}, spell{} }

// judge takes a service that has not converged, and returns what can be expected of it
// and the time after which to look again although nothing has changed.
func (o *forecast) judge(s *musterv1.Service, now time.Time) (verdict, time.Duration) {
	st := s.Status
	current := s.Meta.GetVersion() >= o.version
	stopped := st.GetFailingTasks() + st.GetFinishedTasks()
	o.failing.note(current && stopped > 0 && st.GetRunningTasks()+stopped == st.GetDesiredTasks() && !(o.rollout && underWay(s)), now)
	pending := current && st.GetPendingReason() != ""
	if !pending || st.GetRunningTasks() > o.most {
		o.unfit.note(false, now)
		o.most = st.GetRunningTasks()
	}
	o.unfit.note(pending, now)
	o.notePreparing(st.GetRunningTasks(), now)
	o.absent.note(o.missing != "", now)

	next := max(o.moved.Add(quietPatience).Sub(now), o.asked.Add(quietPatience).Sub(now))
	if next <= 0 {
		next = quietPatience
	}
	for _, c := range []struct {
		spell    *spell
		patience time.Duration
		means    verdict
	}{{&o.failing, failingPatience, tasksFail}, {&o.unfit, unfitPatience, noNodeFits}, {&o.preparing, preparingPatience, preparationFails}, {&o.absent, missingPatience, daemonMissing}} {
		left, lasts := c.spell.left(c.patience, now)
		switch {
		case !lasts || o.keepWaiting:
		case left > 0:
			next = min(next, left)
		case c.means == tasksFail && st.GetFailingTasks() == 0:
			return tasksEnded, 0
		default:
			return c.means, 0
		}
	}
	return mayConverge, next
}

// asks reports whether it is time to ask the cluster whether a daemon is missing:
// nothing has changed for a while, and the service does not say why.
func (o *forecast) asks(s *musterv1.Service, now time.Time) bool {
	return s.Status.GetPendingReason() == "" && now.Sub(o.moved) >= quietPatience && now.Sub(o.asked) >= quietPatience
}

// underWay reports whether an update or a rollback replaces tasks.
func underWay(s *musterv1.Service) bool {
	state := s.UpdateStatus.GetState()
	return state == musterv1.UpdateStatus_UPDATING || state == musterv1.UpdateStatus_ROLLBACK_STARTED
}

// roles are what the manager daemons are, for people.
var roles = map[string]string{
	"orchestratord": "orchestrator", "allocatord": "allocator", "schedulerd": "scheduler", "dispatcherd": "dispatcher",
}

// missingText says which daemon is missing and what to do, or "" if none is.
func (o *forecast) missingText() string {
	if o.missing == "" {
		return ""
	}
	return fmt.Sprintf("no %s is running: start %s", roles[o.missing], o.missing)
}

// absentDaemons returns the manager daemons that have no instance. Nothing is known
// of them while the store does not answer.
func absentDaemons(m *musterv1.GetClusterStatusResponse) []string {
	var absent []string
	for _, s := range m.Subsystems {
		if m.Store.GetReachable() && s.Instances == 0 {
			absent = append(absent, s.Daemon)
		}
	}
	return absent
}

// nextActor returns the absent daemon that a service's tasks wait for, or "": the
// scheduler for tasks without a node, the dispatcher for tasks that their worker has
// not got, and the orchestrator if no task is on its way at all.
func nextActor(tasks []*musterv1.Task, absent []string) string {
	waits := map[string]bool{"orchestratord": len(tasks) == 0}
	for _, t := range tasks {
		switch s := t.Status.GetState(); {
		case s <= musterv1.TaskState_PENDING:
			waits["schedulerd"], waits["allocatord"] = true, true
		case s <= musterv1.TaskState_ASSIGNED:
			waits["dispatcherd"] = true
		}
	}
	if i := slices.IndexFunc(absent, func(daemon string) bool { return waits[daemon] }); i >= 0 {
		return absent[i]
	}
	return ""
}
