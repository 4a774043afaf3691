package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// judge returns an error if the service will not converge without a change from
// outside, and otherwise a channel that says when to judge again.
func (f *waiting) judge(ctx context.Context, s *musterv1.Service) (<-chan time.Time, error) {
	now := time.Now()
	if f.forecast.asks(s, now) {
		f.forecast.asked = now
		f.forecast.missing = f.missingDaemon(ctx)
		f.progress.missing = f.forecast.missingText()
	}
	what, after := f.forecast.judge(s, now)
	if what == mayConverge {
		if shown := f.progress.waitsShown(); shown > 0 {
			after = min(after, shown)
		}
		return time.After(after), nil
	}
	if what == tasksEnded && f.completes {
		if done, err := f.completed(ctx, s); done || err != nil {
			return nil, cmp.Or(err, errCompleted)
		}
	}
	return nil, f.notConverging(ctx, s, what)
}

// completed reports whether the tasks of a service that have ended have all ended with
// success.
func (f *waiting) completed(ctx context.Context, s *musterv1.Service) (bool, error) {
	tasks, err := f.tasks(ctx, musterv1.TaskState_COMPLETE)
	if err != nil {
		return false, err
	}
	type place struct {
		slot uint64
		node string
	}
	places := map[place]bool{}
	for _, t := range tasks {
		switch {
		case !f.progress.concerns(t):
		case t.Slot > 0:
			places[place{slot: t.Slot}] = true
		default:
			places[place{node: t.NodeId}] = true
		}
	}
	return uint64(len(places)) >= s.Status.GetFinishedTasks(), nil
}

// missingDaemon asks the cluster which daemon that must act next is missing. That
// only explains what is seen anyway, so that no answer is no error.
func (f *waiting) missingDaemon(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := f.client.GetClusterStatus(ctx, &musterv1.GetClusterStatusRequest{})
	if err != nil {
		return ""
	}
	absent := absentDaemons(resp)
	if len(absent) == 0 {
		return ""
	}
	tasks, err := f.tasks(ctx, onTheWay()...)
	if err != nil {
		return ""
	}
	return nextActor(tasks, absent)
}

// onTheWay returns the states of tasks that do not run yet.
func onTheWay() []musterv1.TaskState {
	var states []musterv1.TaskState
	for s := range musterv1.TaskState_name {
		if s := musterv1.TaskState(s); s != musterv1.TaskState_TASK_STATE_UNSPECIFIED && s < musterv1.TaskState_RUNNING {
			states = append(states, s)
		}
	}
	return states
}

// notConverging is the error of a wait for a service that does not converge by itself. It
// says why, what Muster does now, and how to continue.
func (f *waiting) notConverging(ctx context.Context, s *musterv1.Service, what verdict) error {
	st, name := s.Status, s.Spec.GetName()
	failed := []musterv1.TaskState{musterv1.TaskState_FAILED, musterv1.TaskState_REJECTED}
	why, now := "", ""
	switch what {
	case tasksFail:
		why = quantity(st.GetFailingTasks(), st.GetDesiredTasks(), "keeps failing", "keep failing") + f.causes(ctx, failed...)
		now = "Muster still retries, with a growing delay."
	case tasksEnded:
		why = quantity(st.GetFinishedTasks(), st.GetDesiredTasks(), "has ended", "have ended") + ", and the restart policy allows no further start" + f.causes(ctx, failed...)
		now = fmt.Sprintf("`muster service update --force %s` starts tasks again.", name)
	case noNodeFits:
		why = "no node takes the tasks that wait: " + st.GetPendingReason()
		now = "Muster starts them as soon as a node fits."
	case preparationFails:
		n := uint64(len(f.forecast.erring))
		why = quantity(n, st.GetDesiredTasks(), "cannot be prepared", "cannot be prepared") + f.causes(ctx, musterv1.TaskState_PREPARING)
		now = "Muster still retries."
	case daemonMissing:
		return fmt.Errorf("%w: %s\nMuster continues as soon as it runs; `muster cluster status` shows all daemons; with --keep-waiting this command keeps waiting", errNotConverged, f.forecast.missingText())
	}
	return fmt.Errorf("%w: %s\n%s `muster service ps %s` shows the tasks; with --keep-waiting this command keeps waiting", errNotConverged, why, now, name)
}

// quantity says how many tasks of how many do something: "the task", "1 of 3 tasks" or
// "all 3 tasks".
func quantity(n, of uint64, one, several string) string {
	switch {
	case of == 1:
		return "the task " + one
	case n == of:
		return fmt.Sprintf("all %d tasks %s", of, several)
	case n == 1:
		return fmt.Sprintf("1 of %d tasks %s", of, one)
	}
	return fmt.Sprintf("%d of %d tasks %s", n, of, several)
}

// mostCauses is how many different causes an error lists.
const mostCauses = 3

// causes lists the errors of tasks of the service's present spec in these states, the most
// frequent one first.
func (f *waiting) causes(ctx context.Context, states ...musterv1.TaskState) string {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	tasks, err := f.tasks(ctx, states...)
	if err != nil {
		return ""
	}
	counts := map[string]int{}
	for _, t := range tasks {
		if f.progress.concerns(t) && (t.Status.GetState() != musterv1.TaskState_PREPARING || t.Status.GetError() != "") {
			counts[cause(t)]++
		}
	}
	causes := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	var b strings.Builder
	for _, c := range causes[:min(len(causes), mostCauses)] {
		b.WriteString("\n  " + printable(c))
	}
	if n := len(causes) - mostCauses; n > 0 {
		fmt.Fprintf(&b, "\n  and %d more", n)
	}
	return b.String()
}
