package objects_test

import (
	"fmt"
	"strings"
	"testing"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/state"
)

// way writes stages as "name@daemon+took", with "!behind" where clocks differ.
func way(stages []*musterv1.TaskStage) string {
	var all []string
	for i, s := range stages {
		text := s.Name + "@" + s.Daemon
		if i > 0 {
			text += fmt.Sprintf("+%d", s.Took.AsDuration().Milliseconds())
		}
		if s.ClockBehind != nil {
			text += fmt.Sprintf("!%d", s.ClockBehind.AsDuration().Milliseconds())
		}
		all = append(all, text)
	}
	return strings.Join(all, " ")
}

func TestStages(t *testing.T) {
	t.Parallel()
	const (
		running  = musterv1.TaskState_RUNNING
		shutdown = musterv1.TaskState_SHUTDOWN
	)
	timed := func(s *recordv1.Status, at ...int64) *recordv1.Status {
		states := []musterv1.TaskState{
			musterv1.TaskState_ACCEPTED, musterv1.TaskState_PREPARING, musterv1.TaskState_READY, musterv1.TaskState_STARTING, running, shutdown,
		}
		var times []state.StateTime
		for i, a := range at {
			times = append(times, state.StateTime{State: states[i], At: a})
		}
		state.SetTimes(s, times)
		return s
	}
	assigned := &recordv1.Assignment{AssignedAt: 1030}
	tests := map[string]struct {
		record     *recordv1.Task
		assignment *recordv1.Assignment
		status     *recordv1.Status
		want       string
	}{
		"just made, to replace another": {
			record: &recordv1.Task{CreatedAt: 1010, DesiredAt: 1010, DesiredState: running, Reason: "task failed"},
			want:   "created@orchestratord",
		},
		"runs": {
			record:     &recordv1.Task{AskedAt: 1000, CreatedAt: 1010, DesiredAt: 1010, DesiredState: running},
			assignment: assigned,
			status:     timed(&recordv1.Status{State: running, At: 1110, SentAt: 1040, AppliedAt: 1120}, 1045, 1046, 1096, 1097, 1110),
			want: "requested@apid created@orchestratord+10 assigned@schedulerd+20 sent@dispatcherd+10 accepted@workerd+5 " +
				"preparing@workerd+1 ready@workerd+50 starting@workerd+1 running@workerd+13 recorded@dispatcherd+10",
		},
		"the worker's clock is behind": {
			record:     &recordv1.Task{AskedAt: 1000, CreatedAt: 1010, DesiredAt: 1010, DesiredState: running},
			assignment: assigned,
			status:     timed(&recordv1.Status{State: running, At: 560, SentAt: 1040, AppliedAt: 1070}, 500, 510, 520, 530, 560),
			want: "requested@apid created@orchestratord+10 assigned@schedulerd+20 sent@dispatcherd+10 accepted@workerd+0!540 " +
				"preparing@workerd+10 ready@workerd+10 starting@workerd+10 running@workerd+30 recorded@dispatcherd+510",
		},
		"the worker's clock is ahead": {
			record:     &recordv1.Task{CreatedAt: 1010, DesiredAt: 1010, DesiredState: running},
			assignment: assigned,
			status:     timed(&recordv1.Status{State: running, At: 9050, SentAt: 1040, AppliedAt: 1070}, 9000, 9010, 9020, 9030, 9050),
			want: "created@orchestratord assigned@schedulerd+20 sent@dispatcherd+10 accepted@workerd+7960 " +
				"preparing@workerd+10 ready@workerd+10 starting@workerd+10 running@workerd+20 recorded@dispatcherd+0!7980",
		},
		"waited for a restart delay": {
			record:     &recordv1.Task{CreatedAt: 1010, DesiredAt: 6010, DesiredState: running, StartAfter: 6010},
			assignment: assigned,
			status:     timed(&recordv1.Status{State: running, At: 6030, AppliedAt: 6040}, 1045, 1046, 1096, 6020, 6030),
			want: "created@orchestratord assigned@schedulerd+20 accepted@workerd+15 preparing@workerd+1 ready@workerd+50 " +
				"released@orchestratord+4914 starting@workerd+10 running@workerd+10 recorded@dispatcherd+10",
		},
		"stopped": {
			record:     &recordv1.Task{CreatedAt: 1010, DesiredAt: 2000, DesiredState: shutdown, Reason: "service was scaled down"},
			assignment: assigned,
			status:     timed(&recordv1.Status{State: shutdown, At: 2020, AppliedAt: 2025}, 1045, 1046, 1047, 1048, 1049, 2020),
			want: "created@orchestratord assigned@schedulerd+20 accepted@workerd+15 preparing@workerd+1 ready@workerd+1 starting@workerd+1 " +
				"running@workerd+1 stopping@orchestratord+951 shutdown@workerd+20 recorded@dispatcherd+5",
		},
		"given up with its node": {
			record:     &recordv1.Task{CreatedAt: 1010, DesiredAt: 5000, DesiredState: shutdown, Reason: "node is down"},
			assignment: assigned,
			status: &recordv1.Status{
				State: musterv1.TaskState_ORPHANED, At: 9000, AppliedAt: 9000,
				Reached: []musterv1.TaskState{running, musterv1.TaskState_ORPHANED}, ReachedBefore: []int64{7950, 0},
			},
			want: "created@orchestratord assigned@schedulerd+20 running@workerd+20 stopping@orchestratord+3950 orphaned@dispatcherd+4000",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := objects.Stages(&objects.Task{Task: &state.Task{Record: test.record, Assignment: test.assignment, Status: test.status}})
			if way(got) != test.want {
				t.Errorf("got  %s\nwant %s", way(got), test.want)
			}
			for _, s := range got {
				if s.Took.AsDuration() < 0 || s.ClockBehind != nil && s.ClockBehind.AsDuration() <= 0 {
					t.Errorf("stage %s took %v, clock behind %v", s.Name, s.Took.AsDuration(), s.ClockBehind.AsDuration())
				}
			}
		})
	}
}
