package cli

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

const (
	stPending   = musterv1.TaskState_PENDING
	stAssigned  = musterv1.TaskState_ASSIGNED
	stPreparing = musterv1.TaskState_PREPARING
	stStarting  = musterv1.TaskState_STARTING
	stRejected  = musterv1.TaskState_REJECTED
	stFailed    = musterv1.TaskState_FAILED
	stComplete  = musterv1.TaskState_COMPLETE
)

// TestWaitEndsWhenNothingChangesByItself plays what a cluster shows to commands that
// wait.
func TestWaitEndsWhenNothingChangesByItself(t *testing.T) {
	create := []string{"service", "create", "--name", "web", "--kind", "null"}
	update3 := []string{"service", "update", "--force", "web"}
	scale := []string{"service", "scale", "web=3"}
	const sec = time.Second
	for name, c := range map[string]struct {
		args  []string
		steps []step
		code  int
		// least and most bound when the command ends.
		least, most time.Duration
		want, lacks []string
	}{
		"image cannot be pulled": {create, []step{
			{1 * sec, task("t1", stRejected, "no such image")}, {6 * sec, task("t2", stRejected, "no such image")},
			{11 * sec, steps(task("t3", stRejected, "no such image"), counts(0, 1, 1, 0))},
		}, ExitNotConverged, 11 * sec, 13 * sec,
			[]string{"the task keeps failing\n  rejected: no such image\n", "still retries", "`muster service ps web`", "--keep-waiting"}, nil},
		"recovers after two failures": {create, []step{
			{1 * sec, task("t1", stFailed, "exit code 1")}, {6 * sec, task("t2", stFailed, "exit code 1")}, {11 * sec, runsAll},
		}, 0, 11 * sec, 13 * sec, nil, nil},
		"watch ends again and again during two failures": {create, []step{
			{1 * sec, task("t1", stFailed, "exit code 1")}, {3 * sec, breaks}, {6 * sec, breaks},
			{7 * sec, task("t2", stFailed, "exit code 1")}, {9 * sec, breaks}, {12 * sec, breaks}, {15 * sec, breaks}, {18 * sec, runsAll},
		}, 0, 18 * sec, 20 * sec, nil, nil},
		"watch ends while the third failure happens": {create, []step{
			{1 * sec, task("t1", stFailed, "exit code 1")}, {3 * sec, steps(breaks, task("t3", stFailed, "exit code 1"), counts(0, 1, 1, 0))},
		}, ExitNotConverged, 3 * sec, 7 * sec, []string{"the task keeps failing\n  failed: exit code 1"}, nil},
		"failed before the watch": {create, []step{
			{0, steps(task("t1", stFailed, "exit code 9"), counts(0, 1, 1, 0))},
		}, ExitNotConverged, sec, 2 * sec, []string{"web: 0/1 running: task t1 failed: exit code 9\n", "keeps failing"}, nil},
		"attempts are exhausted": {create, []step{
			{1 * sec, steps(task("t1", stFailed, "exit code 3"), counts(0, 1, 0, 1))},
		}, ExitNotConverged, 2 * sec, 3 * sec,
			[]string{"the task has ended, and the restart policy allows no further start\n  failed: exit code 3", "`muster service update --force web`"},
			[]string{"retries"}},
		"task completed for good": {create, []step{
			{1 * sec, steps(task("t1", stComplete, ""), counts(0, 1, 0, 1))},
		}, ExitNotConverged, 2 * sec, 3 * sec, []string{"the task has ended"}, nil},
		"other replicas are still to come": {create, []step{
			{1 * sec, steps(task("t1", stFailed, "exit code 1"), counts(1, 3, 1, 0))}, {60 * sec, counts(2, 3, 1, 0)},
		}, ExitNotConverged, 61 * sec, 62 * sec, []string{"1 of 3 tasks keeps failing"}, nil},
		"failing for a moment": {create, []step{
			{1 * sec, counts(0, 1, 1, 0)}, {1500 * time.Millisecond, counts(0, 1, 0, 0)}, {30 * sec, runsAll},
		}, 0, 30 * sec, 32 * sec, nil, nil},
		"no node fits": {create, []step{
			{1 * sec, pending("no node is ready")},
		}, ExitNotConverged, 16 * sec, 17 * sec, []string{"no node takes the tasks that wait: no node is ready\nMuster starts them as soon as a node fits"}, nil},
		"tasks wait for a moment": {create, []step{
			{1 * sec, pending("network ingress is being set up")}, {1500 * time.Millisecond, pending("")}, {20 * sec, runsAll},
		}, 0, 20 * sec, 22 * sec, nil, []string{"ingress"}},
		"tasks wait for longer": {create, []step{
			{1 * sec, pending("network ingress is being set up")}, {2500 * time.Millisecond, pending("")}, {20 * sec, runsAll},
		}, 0, 20 * sec, 22 * sec, []string{"web: 0/1 running: network ingress is being set up\n"}, nil},
		"a node comes in time": {create, []step{
			{1 * sec, pending("no node is ready")}, {15 * sec, pending("")}, {20 * sec, runsAll},
		}, 0, 20 * sec, 22 * sec, nil, nil},
		"nodes become free one after another": {create, []step{
			{1 * sec, steps(counts(0, 3, 0, 0), pending("full"))}, {12 * sec, steps(counts(1, 3, 0, 0), pending("full"))},
			{24 * sec, steps(counts(2, 3, 0, 0), pending("full"))}, {36 * sec, counts(3, 3, 0, 0)},
		}, 0, 36 * sec, 38 * sec, nil, nil},
		"no scheduler": {create, []step{
			{0, steps(absent("schedulerd"), task("t1", stPending, ""))},
		}, ExitNotConverged, 15 * sec, 16 * sec,
			[]string{"web: 0/1 running: no scheduler is running: start schedulerd\n", "not converged: no scheduler is running: start schedulerd\n", "`muster cluster status`"}, nil},
		"a server that lags does not know the service": {create, []step{
			{0, unknown}, {3 * sec, known}, {4 * sec, runsAll},
		}, 0, 4 * sec, 6 * sec, nil, nil},
		"the service is removed": {create, []step{
			{0, unknown},
		}, ExitNotConverged, 5 * sec, 8 * sec, []string{"the service was removed meanwhile"}, nil},
		"scheduler restarts": {create, []step{
			{0, steps(absent("schedulerd"), task("t1", stPending, ""))}, {12 * sec, absent()}, {40 * sec, runsAll},
		}, 0, 40 * sec, 42 * sec, nil, nil},
		"no orchestrator": {create, []step{
			{0, absent("orchestratord", "schedulerd")},
		}, ExitNotConverged, 15 * sec, 16 * sec, []string{"no orchestrator is running: start orchestratord"}, nil},
		"no allocator": {create, []step{
			{0, steps(absent("allocatord"), task("t1", stPending, ""))},
		}, ExitNotConverged, 15 * sec, 16 * sec, []string{"no allocator is running: start allocatord"}, nil},
		"no dispatcher": {create, []step{
			{0, steps(absent("dispatcherd"), task("t1", stAssigned, ""))},
		}, ExitNotConverged, 15 * sec, 16 * sec, []string{"no dispatcher is running: start dispatcherd"}, nil},
		"a long pull without a scheduler": {create, []step{
			{0, steps(absent("schedulerd"), task("t1", stPreparing, ""))}, {600 * sec, runsAll},
		}, 0, 600 * sec, 602 * sec, nil, []string{"schedulerd"}},
		"keeps waiting": {append(slices.Clone(create), "--keep-waiting"), []step{
			{1 * sec, counts(0, 1, 1, 0)}, {600 * sec, runsAll},
		}, 0, 600 * sec, 602 * sec, nil, nil},
		"keeps waiting while no node fits": {append(slices.Clone(create), "--keep-waiting"), []step{
			{1 * sec, pending("no node is ready")}, {600 * sec, runsAll},
		}, 0, 600 * sec, 602 * sec, nil, nil},
		"keeps waiting until the timeout": {append(slices.Clone(create), "--keep-waiting", "--timeout", "1m"), []step{
			{1 * sec, steps(task("t1", stFailed, "exit code 1"), counts(0, 1, 1, 0))},
		}, ExitNotConverged, 60 * sec, 61 * sec, []string{"not converged after 1m0s: task t1 failed: exit code 1\nThe service stays"}, nil},
		"update under way decides itself": {update3, []step{
			{0, counts(1, 1, 0, 0)}, {0, update(musterv1.UpdateStatus_UPDATING)}, {1 * sec, counts(0, 1, 1, 0)},
			{60 * sec, update(musterv1.UpdateStatus_PAUSED)},
		}, ExitNotConverged, 60 * sec, 61 * sec, []string{"update message"}, nil},
		"update waits for a node": {update3, []step{
			{0, update(musterv1.UpdateStatus_UPDATING)}, {1 * sec, steps(counts(0, 1, 0, 0), pending("insufficient memory"))},
		}, ExitNotConverged, 16 * sec, 17 * sec, []string{"insufficient memory"}, nil},
		"update completed with failures": {update3, []step{
			{0, update(musterv1.UpdateStatus_UPDATING)}, {20 * sec, steps(counts(0, 1, 1, 0), update(musterv1.UpdateStatus_COMPLETED))},
		}, ExitNotConverged, 21 * sec, 22 * sec, []string{"the task keeps failing"}, nil},
		"rollback fails": {[]string{"service", "rollback", "web"}, []step{
			{0, update(musterv1.UpdateStatus_ROLLBACK_STARTED)}, {20 * sec, steps(counts(0, 1, 1, 0), update(musterv1.UpdateStatus_ROLLBACK_COMPLETED))},
		}, ExitNotConverged, 21 * sec, 22 * sec, []string{"the task keeps failing"}, nil},
		"scale while an update is paused": {scale, []step{
			{0, steps(counts(2, 3, 0, 0), update(musterv1.UpdateStatus_PAUSED))}, {20 * sec, counts(2, 3, 1, 0)},
		}, ExitNotConverged, 21 * sec, 22 * sec, []string{"1 of 3 tasks keeps failing"}, nil},
		"scaled down to what runs": {scale, []step{
			{0, counts(3, 3, 1, 0)}, {0, func(c *scripted) { c.service.Status.Converged = false }}, {20 * sec, counts(3, 3, 0, 0)},
		}, 0, 20 * sec, 22 * sec, nil, nil},
		"version is not there yet": {create, []step{
			{0, steps(counts(0, 1, 1, 0))}, {0, func(c *scripted) { c.service.Meta.Version = 7 }},
			{500 * time.Millisecond, func(c *scripted) { c.service.Meta.Version = 6 }}, {20 * sec, func(c *scripted) { c.service.Meta.Version = 7; runsAll(c) }},
		}, 0, 20 * sec, 22 * sec, nil, nil},
		"all tasks fail": {create, []step{
			{1 * sec, counts(0, 3, 3, 0)},
		}, ExitNotConverged, 2 * sec, 3 * sec, []string{"all 3 tasks keep failing"}, nil},
		"several tasks have ended": {create, []step{
			{1 * sec, counts(1, 3, 0, 2)},
		}, ExitNotConverged, 2 * sec, 3 * sec, []string{"2 of 3 tasks have ended, and the restart policy"}, nil},
		"a long pull": {create, []step{
			{1 * sec, pulls("t1", "nginx:1", "executor docker has not answered")}, {60 * sec, runsAll},
		}, 0, 60 * sec, 62 * sec, []string{"web: 0/1 running: task t1 is being prepared: executor docker has not answered\n"}, nil},
		"attaching fails for a minute": {create, []step{
			{1 * sec, task("t1", stPreparing, "network back: no device")}, {50 * sec, breaks},
			{61 * sec, task("t1", stPreparing, "network back: still no device")},
		}, ExitNotConverged, 61 * sec, 66 * sec, []string{
			"the task cannot be prepared\n  is being prepared: network back: still no device\nMuster still retries. `muster service ps web`", "--keep-waiting",
		}, nil},
		"attaching succeeds within a minute": {create, []step{
			{1 * sec, task("t1", stPreparing, "no device")}, {55 * sec, task("t1", stPreparing, "")}, {58 * sec, task("t1", stPreparing, "no device")},
			{117 * sec, task("t1", stStarting, "")}, {200 * sec, runsAll},
		}, 0, 200 * sec, 202 * sec, nil, nil},
		"one of several tasks cannot be attached": {create, []step{
			{0, counts(0, 3, 0, 0)}, {1 * sec, task("t1", stPreparing, "no device")}, {50 * sec, counts(1, 3, 0, 0)}, {100 * sec, counts(2, 3, 0, 0)},
		}, ExitNotConverged, 160 * sec, 161 * sec, []string{"1 of 3 tasks cannot be prepared\n  is being prepared: no device"}, nil},
		"keeps waiting while attaching fails": {append(slices.Clone(create), "--keep-waiting"), []step{
			{1 * sec, task("t1", stPreparing, "no device")}, {600 * sec, runsAll},
		}, 0, 600 * sec, 602 * sec, nil, nil},
		"update waits for a task that cannot be attached": {update3, []step{
			{0, steps(counts(0, 1, 0, 0), update(musterv1.UpdateStatus_UPDATING))}, {1 * sec, task("t1", stPreparing, "no device")},
		}, ExitNotConverged, 61 * sec, 62 * sec, []string{"the task cannot be prepared"}, nil},
		"a long pull is over": {append(slices.Clone(create), "--timeout", "1m"), []step{
			{1 * sec, pulls("t1", "nginx:1", "executor docker has not answered")}, {30 * sec, task("t1", stStarting, "")},
		}, ExitNotConverged, 60 * sec, 61 * sec, []string{"not converged after 1m0s\n"}, nil},
		"interrupt while reasons are read": {create, []step{
			{1 * sec, steps(slowly(10*sec), counts(0, 1, 1, 0))}, {5 * sec, interrupted},
		}, ExitInterrupted, 5 * sec, 5 * sec, []string{"interrupted"}, []string{"not converged"}},
		"interrupt between two services": {[]string{"service", "scale", "web=1", "web=2"}, []step{
			{1 * sec, counts(0, 1, 1, 0)}, {2500 * time.Millisecond, interrupted},
		}, ExitInterrupted, 2500 * time.Millisecond, 2500 * time.Millisecond, []string{"the task keeps failing", "interrupted"}, nil},
		"apid disappears": {create, []step{
			{5 * sec, disappears},
		}, ExitUnavailable, 64 * sec, 75 * sec, []string{
			"web: 0/1 running: apid at apid.example:7700 does not answer; retrying…\nstopped waiting after 1m", "s: apid at apid.example:7700 does not answer\nThe request is stored",
		}, nil},
		"apid hangs": {create, []step{
			{5 * sec, hangs},
		}, ExitUnavailable, 64 * sec, 80 * sec, []string{"apid at apid.example:7700 does not answer; retrying…\nstopped waiting after 1m"}, nil},
		"apid returns": {create, []step{
			{5 * sec, disappears}, {60 * sec, returns}, {80 * sec, runsAll},
		}, 0, 80 * sec, 82 * sec, []string{"does not answer; retrying…\nweb: 0/1 running\nweb: 1/1 running\n"}, nil},
		"apid disappears during a bounded wait": {append(slices.Clone(create), "--timeout", "30s"), []step{
			{5 * sec, disappears},
		}, ExitNotConverged, 30 * sec, 32 * sec, []string{"not converged after 30s: apid at apid.example:7700 does not answer\n"}, nil},
		"keeps waiting for apid": {append(slices.Clone(create), "--keep-waiting"), []step{
			{5 * sec, disappears}, {600 * sec, returns}, {620 * sec, runsAll},
		}, 0, 620 * sec, 622 * sec, nil, nil},
		"quietly without apid": {append(slices.Clone(create), "--quiet"), []step{
			{5 * sec, disappears},
		}, ExitUnavailable, 64 * sec, 75 * sec, []string{"stopped waiting"}, []string{"retrying"}},
		"one timeout for all services": {[]string{"service", "scale", "web=1", "web=1", "other=2", "--timeout", "1m"}, nil,
			ExitNotConverged, 60 * sec, 61 * sec, []string{"not converged after 1m0s\n", "other: 2/2 running: converged\n"}, nil},
		"one service cannot be scaled": {[]string{"service", "scale", "nosuch=1", "web=1"}, []step{
			{20 * sec, runsAll},
		}, ExitNotFound, 20 * sec, 22 * sec, []string{"there is no service \"nosuch\"", "web: 1/1 running: converged"}, nil},
		"reasons of all services": {[]string{"service", "scale", "web=1", "web=1"}, []step{
			{1 * sec, counts(0, 1, 1, 0)}, {1500 * time.Millisecond, denied},
		}, ExitFailure, 2 * sec, 4 * sec, []string{"the task keeps failing", "your role may not read services"}, nil},
		"waits for a node to be ready": {[]string{"cluster", "status", "--wait", "1m"}, []step{
			{12 * sec, ready(1)},
		}, 0, 12 * sec, 13 * sec, nil, nil},
		"no node is ready in time": {[]string{"cluster", "status", "--wait", "1m"}, nil,
			ExitUnhealthy, 60 * sec, 61 * sec, []string{"ready nodes: 0, want 1: start workers"}, nil},
		"waits for several nodes": {[]string{"cluster", "status", "--wait", "1m", "--ready-nodes", "3"}, []step{
			{12 * sec, ready(2)}, {24 * sec, ready(3)},
		}, 0, 24 * sec, 25 * sec, nil, nil},
		"needs no node if told so":            {[]string{"cluster", "status", "--wait", "1m", "--ready-nodes", "0"}, nil, 0, 0, sec, nil, nil},
		"status without --wait needs no node": {[]string{"cluster", "status"}, nil, 0, 0, sec, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := runScripted(t, c.steps, c.args...)
				if r.code != c.code {
					t.Errorf("exit code %d, want %d", r.code, c.code)
				}
				if r.took < c.least || r.took > c.most {
					t.Errorf("ended after %v, want %v to %v", r.took, c.least, c.most)
				}
				for _, want := range c.want {
					if !strings.Contains(r.errs, want) {
						t.Errorf("output lacks %q", want)
					}
				}
				for _, unwanted := range c.lacks {
					if strings.Contains(r.errs, unwanted) {
						t.Errorf("output has %q", unwanted)
					}
				}
				if t.Failed() {
					t.Logf("output:\n%s", r.errs)
				}
			})
		})
	}
}
