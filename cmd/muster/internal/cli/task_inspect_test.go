package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func TestStagesAreTold(t *testing.T) {
	t.Parallel()
	at := func(ms int64) *timestamppb.Timestamp { return timestamppb.New(time.UnixMilli(ms)) }
	took := func(ms int64) *durationpb.Duration {
		return durationpb.New(time.Duration(ms) * time.Millisecond)
	}
	task := &musterv1.Task{
		Id: "t1", ServiceName: "web", Slot: 2, NodeId: "n1", DesiredState: musterv1.TaskState_RUNNING,
		Status: &musterv1.TaskStatus{State: musterv1.TaskState_RUNNING, Timestamp: at(600)},
		Stages: []*musterv1.TaskStage{
			{Name: "created", Daemon: "orchestratord", At: at(1000), Detail: "slot has no task"},
			{Name: "assigned", Daemon: "schedulerd", At: at(1020), Took: took(20)},
			{Name: "accepted", Daemon: "workerd", At: at(500), Took: took(0), ClockBehind: took(520)},
			{Name: "running", Daemon: "workerd", At: at(600), Took: took(100)},
		},
	}
	var out bytes.Buffer
	c := &CLI{Out: &out}
	if err := c.printTask(task, map[string]string{"n1": "worker1"}); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{
		"Name: web.2", "Node: worker1", "State: Running", "slot has no task", "~20ms", " ? running", " 100ms ",
		"The clock of workerd is at least 520ms behind that of schedulerd",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("output lacks %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(got, " -") {
		t.Errorf("a duration is negative:\n%s", out.String())
	}
}
