package tasks

import (
	"time"

	"go.uber.org/zap"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/workerd/internal/bounds"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
	"github.com/musterhq/muster/workerd/taskdb"
)

// A store that refuses writes, such as one on a full disk, delays only what must
// be written before it is done: preparing and starting tasks. Everything else goes
// on and is written when the store takes it. If the worker dies in between, it
// remembers less than it has reported. That does no harm: every call can be made
// again, and dispatchers never let a state fall.

// storeRetry is how long to wait after the store refused a write.
const storeRetry = time.Second

// writtenFirst reports whether the store must know about an action before it is
// begun.
func (a action) writtenFirst() bool { return a == actPrepare || a == actAttach || a == actStart }

// readyBlocked reports whether the task is prepared and must not start yet.
func (t *task) readyBlocked() bool {
	return t.state() == musterv1.TaskState_READY && t.goal <= musterv1.TaskState_READY
}

// unsaved reports whether the store lacks something about the task. Nothing is
// stored about a task that is being removed, or that was never assigned.
func (t *task) unsaved() bool {
	return t.goal < musterv1.TaskState_REMOVE && (t.current != t.stored || t.assigned != t.storedAssigned)
}

// save writes to the store what it lacks, unless the store refused a write a
// moment ago, and then publishes the status to report. If the store refuses, and
// the task is waiting for it, that is what is reported.
func (t *task) save(waiting bool) {
	if !t.unsaved() {
		return
	}
	if t.pauses != nil && time.Now().Before(t.pauses.saveAt) {
		t.wakeAt(t.pauses.saveAt)
		return
	}
	now := t.current
	if err := t.write(); err != nil {
		t.hasPauses().saveAt = time.Now().Add(storeRetry)
		t.wakeAt(t.pauses.saveAt)
		if waiting {
			t.reportWaiting(err)
		}
		return
	}
	before := t.stored.status.State
	t.stored, t.storedAssigned = now, t.assigned
	if t.networked() && now.place == nil && lifecycle.Ended(now.status.State) {
		t.m.networks.Release(t.id)
	}
	if t.reported.Load() == &now.status {
		return
	}
	if before < musterv1.TaskState_RUNNING && now.status.State == musterv1.TaskState_RUNNING {
		t.m.metrics.runs(t.acceptedAt)
	}
	t.publish(&now.status, now.status.Settled(t.goal))
}

// write writes to the store what it lacks.
func (t *task) write() error {
	if t.m.cfg.Store == nil {
		return nil
	}
	change := taskdb.Change{ID: t.id, Handle: t.current.handle}
	if t.current.executor != t.stored.executor {
		change.Executor = t.current.executor
	}
	if t.current != t.stored {
		change.Status = t.current.status.Report(t.id)
	}
	if t.current.place != t.stored.place {
		change.Place, change.NoPlace = t.current.place.encode(), t.current.place == nil
	}
	var specs map[string]*musterv1.TaskSpec
	if t.assigned != t.storedAssigned {
		change.Assigned = t.assigned
		specs = map[string]*musterv1.TaskSpec{t.digest: t.spec}
	}
	return t.m.cfg.Store.Apply(specs, change)
}

// publish sets the status to report and says that it has changed.
func (t *task) publish(status *lifecycle.Status, settled bool) {
	if status.State == musterv1.TaskState_TASK_STATE_UNSPECIFIED {
		return
	}
	t.reported.Store(status)
	t.m.cfg.Changed(t.id, settled)
}

// reportWaiting reports that the task cannot continue before the store takes writes.
func (t *task) reportWaiting(cause error) {
	var said lifecycle.Status
	text := bounds.Text("worker cannot write to its data directory: "+cause.Error(), nodereport.MaxStatusText)
	if last := t.reported.Load(); last == nil {
		said.Move(musterv1.TaskState_ASSIGNED, time.Now(), "assigned")
		said.Times = nil
	} else if said = *last; said.Error == text {
		return
	}
	said.Error = text
	t.m.log.Error("failed to persist task status; task has to wait", zap.String("task", t.id), zap.Error(cause))
	t.publish(&said, true)
}

// report returns the task's status for the dispatcher, or nil if there is none to
// report.
func (t *task) report() *dispatcherv1.ReportedStatus {
	status := t.reported.Load()
	if status == nil || status.State < t.floor {
		return nil
	}
	return status.Report(t.id)
}
