package workerd_test

import (
	"testing"
	"testing/synctest"
	"time"

	. "github.com/musterhq/muster/api/muster/v1"
)

// During an upgrade a new worker may meet a dispatcher that speaks protocol 0.
func TestAssignmentsOfAnOldDispatcherAreUnderstood(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, e, _ := alone(t, nil)
		s := d.await(t)
		s.welcome()
		s.assignOld(true, []assignment{nullTask("a", running, nil), nullTask("b", running, nil)})
		settle(time.Second)
		s.wantStates(map[string]TaskState{"a": running, "b": running})
		s.assignOld(false, []assignment{nullTask("c", running, nil)}, "a")
		settle(time.Minute)
		wantHeld(t, e, "b", "c")
	})
}

// The dispatcher withdraws a spec with the last task that needs it, and the
// worker still has to stop that task.
func TestATaskStopsAfterItsSpecIsWithdrawn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, e, _ := alone(t, nil)
		s := d.await(t)
		s.welcome()
		first := nullTask("a", running, nil)
		s.assign(true, []assignment{first})
		settle(time.Second)
		s.assign(false, nil, "a")
		s.withdrawSpec(first)
		settle(time.Minute)
		wantHeld(t, e)
		// The spec comes again with the next task.
		s.assign(false, []assignment{nullTask("b", running, nil)})
		settle(time.Second)
		wantHeld(t, e, "b")
	})
}

// A spec that was withdrawn and that no task holds is gone: a task that refers
// to it breaks the protocol, and the worker begins a new session.
func TestAWithdrawnSpecIsForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, e, _ := alone(t, nil)
		s := d.await(t)
		s.welcome()
		first, second := nullTask("a", running, nil), nullTask("b", running, nil)
		s.assign(true, []assignment{first})
		settle(time.Second)
		s.assign(false, nil, "a")
		s.withdrawSpec(first)
		settle(time.Minute)
		s.sent[string(second.SpecDigest)] = true // a mistake of the dispatcher
		s.assign(false, []assignment{second})
		s = d.await(t)
		s.welcome()
		s.assign(true, []assignment{second})
		settle(time.Second)
		wantHeld(t, e, "b")
	})
}
