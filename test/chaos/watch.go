package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/rig"
)

// steadyTasks is how many tasks the quiet worker has.
const steadyTasks = 4

// watch looks all the while at what must always hold.
type watch struct {
	s      *site
	report *report
	// steady are the tasks of the quiet worker.
	steady map[string]*musterv1.Task
}

// newWatch starts the tasks that must not notice anything.
func newWatch(ctx context.Context, s *site, report *report) (*watch, error) {
	spec := rig.Processes("steady", steadyTasks, rig.Sleep)
	spec.Task.Placement = &musterv1.Placement{Constraints: []string{"node.hostname==" + quiet}}
	if _, err := s.Create(ctx, spec); err != nil {
		return nil, fmt.Errorf("create the steady service: %w", err)
	}
	w := &watch{s: s, report: report}
	err := await(ctx, settleTimeout, func(ctx context.Context) (err error) {
		w.steady, err = s.Running(ctx, "steady", steadyTasks)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start the steady service: %w", err)
	}
	return w, nil
}

// run looks until ctx ends.
func (w *watch) run(ctx context.Context) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := w.alive(); err != nil {
			w.report.violated("%v", err)
		}
		short, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := w.slots(short)
		cancel()
		if err != nil {
			w.report.violated("%v", err)
		}
		w.report.checked()
	}
}

// alive returns an error unless the steady tasks' processes are there.
func (w *watch) alive() error {
	var errs []error
	for _, t := range w.steady {
		if !rig.Alive(int(t.Status.Runtime.GetPid())) {
			errs = append(errs, fmt.Errorf("task %s of the worker that no fault befell is gone", t.Name))
		}
	}
	return errors.Join(errs...)
}

// slots returns an error if two tasks are to run in one slot, or a service that is
// there has more tasks than slots.
func (w *watch) slots(ctx context.Context) error {
	tasks, err := w.s.Tasks(ctx, "")
	if err != nil {
		return nil // no answer: there is nothing to see
	}
	slots := map[string]string{}
	var errs []error
	for _, t := range tasks {
		if t.DesiredState > musterv1.TaskState_RUNNING || t.Status.GetState() > musterv1.TaskState_RUNNING {
			continue
		}
		slot := fmt.Sprintf("%s.%d", t.ServiceId, t.Slot)
		if other := slots[slot]; other != "" && t.DesiredState == musterv1.TaskState_RUNNING {
			errs = append(errs, fmt.Errorf("slot %d of %s has two tasks that are to run, %s and %s", t.Slot, t.ServiceName, other, t.Id))
		}
		if t.DesiredState == musterv1.TaskState_RUNNING {
			slots[slot] = t.Id
		}
	}
	return errors.Join(errs...)
}

// look returns an error unless the steady tasks are what they were.
func (w *watch) look(ctx context.Context) error {
	now, err := w.s.Running(ctx, "steady", steadyTasks)
	if err != nil {
		return err
	}
	return rig.Same(w.steady, now)
}
