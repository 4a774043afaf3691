package cli

import (
	"bytes"
	"errors"
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
	if err := c.printTask(task, map[string]string{"n1": "worker1"}, nil); err != nil {
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

func TestInspectShowsHealth(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		health *musterv1.Health
		want   []string
		lacks  []string
	}{
		"none":    {nil, nil, []string{"Health:", "Check:"}},
		"healthy": {&musterv1.Health{State: musterv1.Health_HEALTHY, Retries: 3}, []string{"Health:   healthy\n"}, []string{"Check:"}},
		"starting": {
			&musterv1.Health{State: musterv1.Health_STARTING, FailedChecks: 2, Retries: 3, ExitCode: 1, Output: "connection refused"},
			[]string{"Health:   starting, 2 of 3 checks failed\n", "Check:    exit code 1: connection refused\n"}, nil,
		},
		"no output": {
			&musterv1.Health{State: musterv1.Health_UNHEALTHY, FailedChecks: 3, Retries: 3, ExitCode: 7},
			[]string{"Check:    exit code 7: no output\n"}, nil,
		},
		"escapes": {
			&musterv1.Health{State: musterv1.Health_UNHEALTHY, ExitCode: 7, Output: "\x1b[31mred\nline"},
			[]string{"Check:    exit code 7: [31mred line\n"}, []string{"\x1b"},
		},
	} {
		task := &musterv1.Task{Id: "t1", ServiceName: "web", Slot: 1, Status: &musterv1.TaskStatus{Runtime: &musterv1.RuntimeStatus{Health: test.health}}}
		var out bytes.Buffer
		if err := (&CLI{Out: &out}).printTask(task, nil, nil); err != nil {
			t.Fatal(err)
		}
		for _, want := range test.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: output lacks %q:\n%s", name, want, out.String())
			}
		}
		for _, lacks := range test.lacks {
			if strings.Contains(out.String(), lacks) {
				t.Errorf("%s: output has %q:\n%s", name, lacks, out.String())
			}
		}
	}
}

func TestTaskTableShowsHealth(t *testing.T) {
	t.Parallel()
	for state, want := range map[musterv1.Health_State]string{
		musterv1.Health_STARTING: "(health: starting)", musterv1.Health_HEALTHY: "(healthy)", musterv1.Health_UNHEALTHY: "(unhealthy)",
	} {
		task := &musterv1.Task{Id: "t1", Status: &musterv1.TaskStatus{
			State: musterv1.TaskState_RUNNING, Runtime: &musterv1.RuntimeStatus{Health: &musterv1.Health{State: state}},
		}}
		var out bytes.Buffer
		c := &CLI{Out: &out}
		o := &taskTable{}
		o.format = "table"
		if err := c.showTasks(o, []*musterv1.Task{task}, nil); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), "Running "+want) {
			t.Errorf("%s: table lacks %q:\n%s", state, want, out.String())
		}
	}
}

func TestTaskShowsHowARestartedContainerEnded(t *testing.T) {
	t.Parallel()
	task := &musterv1.Task{Id: "t1", Status: &musterv1.TaskStatus{Containers: []*musterv1.ContainerStatus{
		{Name: "main"}, {Name: "proxy", Role: musterv1.GroupContainer_SIDECAR, Restarts: 3, Previous: &musterv1.RuntimeStatus{ExitCode: 137, OomKilled: true}},
	}}}
	var out bytes.Buffer
	if err := (&CLI{Out: &out}).printTask(task, nil, nil); err != nil {
		t.Fatal(err)
	}
	if want := "3 (last exit code 137, out of memory)"; !strings.Contains(out.String(), want) {
		t.Errorf("output lacks %q:\n%s", want, out.String())
	}
}

func TestTablesShowAddressesAndChosenPorts(t *testing.T) {
	t.Parallel()
	service := &musterv1.Service{
		Id: "s1", Spec: &musterv1.ServiceSpec{Name: "web", Endpoint: &musterv1.EndpointSpec{Ports: []*musterv1.PortConfig{
			{TargetPort: 80}, {TargetPort: 53, Protocol: musterv1.PortConfig_UDP, PublishedPort: 5353}, {TargetPort: 80, PublishMode: musterv1.PortConfig_HOST},
		}}},
		Endpoint: &musterv1.Endpoint{
			Ports:      []*musterv1.PortConfig{{TargetPort: 80, Protocol: musterv1.PortConfig_TCP, PublishedPort: 30007}, {TargetPort: 53, Protocol: musterv1.PortConfig_UDP, PublishedPort: 5353}},
			VirtualIps: []*musterv1.VirtualIP{{NetworkId: "n1", Address: "10.64.0.5/16"}},
		},
	}
	tasks := []*musterv1.Task{
		{Id: "t1", ServiceName: "web", Slot: 1, Status: &musterv1.TaskStatus{Ports: []*musterv1.PortConfig{{TargetPort: 80, PublishedPort: 30001}}},
			Networks: []*musterv1.NetworkAttachment{{NetworkId: "n1", Addresses: []string{"10.64.16.2", "fd00::2"}, Aliases: []string{"www"}}, {NetworkId: "gone", Addresses: []string{"10.65.16.9"}}}},
		{Id: "t2", ServiceName: "web", Slot: 2},
	}
	var out bytes.Buffer
	c := &CLI{Out: &out}
	if err := errors.Join(
		c.printTable(serviceTable([]*musterv1.Service{service}, true, map[string]string{"n1": "back"})),
		c.showTasks(&taskTable{output: output{format: "table"}, networks: map[string]string{"n1": "back"}}, tasks, nil),
		c.printTask(tasks[0], nil, map[string]string{"n1": "back"}),
	); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"*:30007->80/tcp, *:5353->53/udp, *:0->80/tcp", "vip", "10.64.0.5/16 on back", "ADDRESSES", "10.64.16.2 on back, fd00::2 on back, 10.65.16.9 on gone",
		"Network:  back 10.64.16.2, fd00::2 (also www)\n", "Network:  gone 10.65.16.9\n", "Ports:    *:30001->80/tcp\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, out.String())
		}
	}
}
