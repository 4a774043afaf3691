package tasks

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/workerd/internal/lifecycle"
	"github.com/musterhq/muster/workerd/taskdb"
)

// post queues an event, and starts a goroutine that owns the task if there is
// none.
func (t *task) post(e event) {
	if t.inbox.put(e) && !t.m.spawn(t.run) {
		// The worker ends, or has not begun.
		t.inbox.release()
	}
}

// run owns the task until its inbox is empty and nothing is left to do but to
// wait. A call to the executor is made after ownership has been given up, in the
// same goroutine: its result comes back as an event. A task that neither changes
// nor has a call in flight therefore costs no goroutine.
func (t *task) run() {
	for {
		next := t.drain()
		if next == nil {
			return
		}
		next.execute()
		if !t.inbox.put(next) {
			return
		}
	}
}

// drain applies events and acts on them until the inbox is empty. It returns the
// call that must be made now, if any. The caller must own the task, and no longer
// does afterwards.
func (t *task) drain() (next *call) {
	for {
		first, more, owned := t.inbox.take()
		if !owned {
			return next
		}
		first.apply(t)
		for _, e := range more {
			e.apply(t)
		}
		if c := t.proceed(); c != nil {
			next = c
		}
	}
}

// proceed does what must be done now: it writes to the store, cancels a call that
// has become pointless, and returns the next call to make, if any.
func (t *task) proceed() *call {
	if t.m.run.Err() != nil {
		return nil
	}
	next, step := t.decide()
	if t.call == nil {
		for next == actAdvance {
			t.advance(step)
			next, step = t.decide()
		}
	}
	if t.call == nil && lifecycle.Ended(t.state()) {
		t.dropFiles()
	}
	t.published.Store(t.current)
	t.save(t.call == nil && next.writtenFirst())
	switch {
	case t.call != nil:
		if next != t.call.action {
			t.call.cancel()
		}
		return nil
	case next == actRest:
		t.rest()
		return nil
	case t.unsaved() && next.writtenFirst():
		return nil
	case next == t.last && t.pauses != nil && time.Now().Before(t.pauses.retryAt):
		t.wakeAt(t.pauses.retryAt)
		return nil
	}
	if t.pauses != nil {
		t.pauses.retryAt = time.Time{}
	}
	if next != t.last {
		t.last, t.attempts = next, 0
		if t.pauses != nil {
			t.pauses.backoff = nil
		}
	}
	if next == actForget {
		t.forget()
		return nil
	}
	t.call = t.newCall(next, step)
	return t.call
}

// advance moves the task to the next state without any call.
func (t *task) advance(step lifecycle.Step) {
	t.move(step, time.Now(), nil)
	if lifecycle.Touched(step.To) && !lifecycle.Ended(step.To) && (t.phase == phaseUntouched || t.phase == phaseMaybeStarted) {
		t.phase = phaseHeld
	}
}

// rest notes that there is nothing to do.
func (t *task) rest() {
	if t.readyBlocked() {
		t.acceptedAt = time.Time{}
	}
}

// retryIn has the last action executed again after a pause.
func (t *task) retryIn(pause time.Duration) {
	t.hasPauses().retryAt = time.Now().Add(pause)
}

// wakeAt makes sure that the task is looked at again at a time or earlier.
func (t *task) wakeAt(at time.Time) {
	p := t.hasPauses()
	if !p.due.IsZero() && !at.Before(p.due) {
		return
	}
	p.due = at
	pause := max(time.Until(at), 0)
	if p.timer == nil {
		p.timer = time.AfterFunc(pause, func() { t.post(wakeUp{}) })
		return
	}
	p.timer.Reset(pause)
}

// hasPauses returns the task's pauses, which it makes if there are none.
func (t *task) hasPauses() *pauses {
	if t.pauses == nil {
		t.pauses = &pauses{}
	}
	return t.pauses
}

// forget ends the life of the task in this worker.
func (t *task) forget() {
	if t.assigned != nil {
		if err := t.m.store(nil, taskdb.Change{ID: t.id, Forget: true}); err != nil {
			if t.attempts == 0 {
				t.m.log.Error("failed to remove task from the store; retrying", zap.String("task", t.id), zap.Error(err))
			}
			t.attempts++
			t.retryIn(storeRetry)
			t.wakeAt(t.pauses.retryAt)
			return
		}
	}
	t.phase = phaseForgotten
	t.dropFiles()
	if t.networked() {
		t.m.networks.Release(t.id)
	}
	if t.pauses != nil && t.pauses.timer != nil {
		t.pauses.timer.Stop()
	}
	t.m.forget(t)
}

// within makes a call that has a deadline of its own.
func within[T any](ctx context.Context, limit time.Duration, call func(context.Context) (T, error)) (T, error) {
	inner, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	res, err := call(inner)
	if err != nil && inner.Err() != nil && ctx.Err() == nil {
		err = noAnswer(limit)
	}
	return res, err
}
