package tasks

import (
	"time"

	"go.uber.org/zap"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/taskdb"
)

// A store that refuses writes (a full disk) holds up only what must be written
// before it is done: that a task is prepared or started. All else goes on, and is
// written when the store takes it. A worker that dies meanwhile remembers less
// than it has reported, which no harm comes of: every call can be made again, and
// dispatchers let no state fall.

// storeRetry is how long to wait after the store refused a write.
const storeRetry = time.Second

// writtenFirst says whether an action must not be begun before the store knows.
func (a action) writtenFirst() bool { return a == actPrepare || a == actStart }

// owes says whether there is something that the store does not know. t.mu is
// held.
func (t *task) owes() bool { return (t.dirty || t.unkept) && !t.orphan && !t.withdrawn }

// save keeps what the store does not know, and lets the status be reported. If
// the store refuses, that is what is reported of a task that has to wait for it.
// t.mu is held, and is released.
func (t *task) save(waits bool) {
	status, dirty, unkept := t.status, t.dirty, t.unkept
	settled := status.Settled(t.desired)
	change := taskdb.Change{ID: t.id, Handle: t.handle}
	if dirty {
		change.Status = status.Report(t.id)
	}
	var specs map[string]*musterv1.TaskSpec
	if unkept {
		change.Assigned = t.assigned
		specs = map[string]*musterv1.TaskSpec{t.digest: t.spec}
	}
	t.dirty, t.unkept = false, false
	if t.m.cfg.Store != nil {
		t.mu.Unlock()
		err := t.m.keep(specs, change)
		t.mu.Lock()
		if err != nil {
			t.dirty, t.unkept = t.dirty || dirty, t.unkept || unkept
			t.saveAt = time.Now().Add(storeRetry)
			if waits {
				t.await(err)
				return
			}
		}
	}
	t.waits = nil
	if !dirty {
		t.mu.Unlock()
		return
	}
	before, parked := t.kept.State, t.parked
	t.kept = status
	t.mu.Unlock()
	if before < musterv1.TaskState_RUNNING && status.State == musterv1.TaskState_RUNNING && !parked {
		t.m.metrics.runs(&status)
	}
	t.m.cfg.Changed(t.id, settled)
}

// await notes that the task waits for the store. t.mu is held, and is released.
func (t *task) await(cause error) {
	said := t.kept
	if said.State == musterv1.TaskState_TASK_STATE_UNSPECIFIED {
		said.Move(musterv1.TaskState_ASSIGNED, time.Now(), "assigned")
		said.Times = nil
	}
	said.Error = "the worker has to wait, for its disk takes no writes: " + cause.Error()
	news := t.waits == nil || t.waits.Error != said.Error
	if t.waits != nil && said.State == t.waits.State {
		said.At = t.waits.At
	}
	t.waits = &said
	t.mu.Unlock()
	if news {
		t.m.log.Error("task has to wait, for its state is not kept", zap.String("task", t.id), zap.Error(cause))
		t.m.cfg.Changed(t.id, true)
	}
}

// report returns what is to be reported of the task, or nil.
func (t *task) report() *dispatcherv1.ReportedStatus {
	t.mu.Lock()
	said, floor, silent := t.kept, t.floor, t.withdrawn || t.orphan
	if t.waits != nil {
		said = *t.waits
	}
	t.mu.Unlock()
	if silent || said.State == musterv1.TaskState_TASK_STATE_UNSPECIFIED || said.State < floor {
		return nil
	}
	return said.Report(t.id)
}
