package statuses

import (
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/internal/state"
)

// stuffed returns m with a large unknown field.
func stuffed[M proto.Message](m M) M {
	m.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 1000, protowire.BytesType), strings.Repeat("x", 100_000)))
	return m
}

// health is a health report with all of its fields.
func health() *musterv1.Health {
	return &musterv1.Health{State: musterv1.Health_UNHEALTHY, FailedChecks: 2, Retries: 2, ExitCode: 1, Output: "no good"}
}

func TestMergeTakesNetworksFromNewestReport(t *testing.T) {
	t.Parallel()
	at := func(ms int64, address string) *recordv1.Status {
		return &recordv1.Status{State: musterv1.TaskState_RUNNING, At: ms, Networks: []*musterv1.NetworkAttachment{{NetworkId: "n", Addresses: []string{address}}}}
	}
	for _, tt := range []struct {
		report *recordv1.Status
		want   string
	}{{at(1, "10.64.1.2"), "10.64.1.1"}, {at(3, "10.64.1.2"), "10.64.1.2"}} {
		if got := Merge(at(2, "10.64.1.1"), tt.report).Networks[0].Addresses[0]; got != tt.want {
			t.Errorf("after a report of %d ms the address is %s, want %s", tt.report.At, got, tt.want)
		}
	}
}

func TestObservedKeepsOnlyWhatAWorkerCanKnow(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(9000)
	long := strings.Repeat("ä", nodereport.MaxStatusText)
	for name, tt := range map[string]struct {
		report *dispatcherv1.ReportedStatus
		want   *recordv1.Status
	}{
		"nothing":             {&dispatcherv1.ReportedStatus{TaskId: "t"}, nil},
		"desired state only":  {&dispatcherv1.ReportedStatus{Status: &musterv1.TaskStatus{State: musterv1.TaskState_ORPHANED}}, nil},
		"a manager's state":   {&dispatcherv1.ReportedStatus{Status: &musterv1.TaskStatus{State: musterv1.TaskState_PENDING}}, nil},
		"no state":            {&dispatcherv1.ReportedStatus{Status: &musterv1.TaskStatus{State: 513}}, nil},
		"without a timestamp": {&dispatcherv1.ReportedStatus{Status: &musterv1.TaskStatus{State: musterv1.TaskState_RUNNING}}, timed(&recordv1.Status{State: musterv1.TaskState_RUNNING, At: 9000}, state.StateTime{State: musterv1.TaskState_RUNNING, At: 9000})},
		"with its timeline": {
			&dispatcherv1.ReportedStatus{
				Status: &musterv1.TaskStatus{State: musterv1.TaskState_FAILED, Timestamp: timestamppb.New(time.UnixMilli(30)), Message: "started", Error: "exit 1"},
				Times: []*musterv1.TaskTime{
					{State: musterv1.TaskState_RUNNING, At: timestamppb.New(time.UnixMilli(20))},
					{State: musterv1.TaskState_ACCEPTED, At: timestamppb.New(time.UnixMilli(10))},
					{State: musterv1.TaskState_ORPHANED, At: timestamppb.New(time.UnixMilli(10))},
					{State: musterv1.TaskState_READY},
				},
				NodeToBlame: true,
			},
			timed(&recordv1.Status{
				State: musterv1.TaskState_FAILED, At: 30, Message: "started", Error: "exit 1", NodeToBlame: true,
			},
				state.StateTime{State: musterv1.TaskState_ACCEPTED, At: 10},
				state.StateTime{State: musterv1.TaskState_RUNNING, At: 20}, state.StateTime{State: musterv1.TaskState_FAILED, At: 30}),
		},
		"far too long": {
			&dispatcherv1.ReportedStatus{Status: &musterv1.TaskStatus{State: musterv1.TaskState_RUNNING, Error: "x" + long, Runtime: &musterv1.RuntimeStatus{
				Id: long, Health: &musterv1.Health{Output: long},
			}}},
			timed(&recordv1.Status{
				State: musterv1.TaskState_RUNNING, At: 9000, Error: "x" + long[:nodereport.MaxStatusText-2], Runtime: &musterv1.RuntimeStatus{
					Id: long[:nodereport.MaxName], Health: &musterv1.Health{Output: long[:nodereport.MaxHealthOutput]},
				},
			}, state.StateTime{State: musterv1.TaskState_RUNNING, At: 9000}),
		},
		"containers": {
			&dispatcherv1.ReportedStatus{Status: &musterv1.TaskStatus{State: musterv1.TaskState_RUNNING, Containers: slices.Repeat([]*musterv1.ContainerStatus{
				stuffed(&musterv1.ContainerStatus{
					Name: "proxy", Role: musterv1.GroupContainer_SIDECAR, State: musterv1.TaskState_RUNNING, Timestamp: stuffed(timestamppb.New(time.UnixMilli(30))),
					Error: "x" + long, Runtime: stuffed(&musterv1.RuntimeStatus{Id: "i", Health: &musterv1.Health{Output: long}}), Restarts: 3,
					Previous: stuffed(&musterv1.RuntimeStatus{Id: long, ExitCode: 137, OomKilled: true, Health: &musterv1.Health{Output: long}}),
				}),
			}, 100)}},
			timed(&recordv1.Status{
				State: musterv1.TaskState_RUNNING, At: 9000, Containers: slices.Repeat([]*musterv1.ContainerStatus{{
					Name: "proxy", Role: musterv1.GroupContainer_SIDECAR, State: musterv1.TaskState_RUNNING, Timestamp: timestamppb.New(time.UnixMilli(30)),
					Error: "x" + long[:nodereport.MaxContainerText-2], Restarts: 3,
					Runtime:  &musterv1.RuntimeStatus{Id: "i", Health: &musterv1.Health{Output: long[:nodereport.MaxContainerText]}},
					Previous: &musterv1.RuntimeStatus{ExitCode: 137, OomKilled: true},
				}}, nodereport.MaxContainers),
			}, state.StateTime{State: musterv1.TaskState_RUNNING, At: 9000}),
		},
		"with more in it than it may have": {
			&dispatcherv1.ReportedStatus{Status: &musterv1.TaskStatus{
				State: musterv1.TaskState_RUNNING, Runtime: stuffed(&musterv1.RuntimeStatus{
					Id: "i", Pid: 7, ExitCode: 3, OomKilled: true, Health: stuffed(health()),
				}),
				Ports: []*musterv1.PortConfig{
					stuffed(&musterv1.PortConfig{Name: long, Protocol: musterv1.PortConfig_UDP, TargetPort: 80, PublishedPort: 8080, PublishMode: musterv1.PortConfig_HOST}),
				},
				Networks: []*musterv1.NetworkAttachment{stuffed(&musterv1.NetworkAttachment{
					NetworkId: long, Addresses: []string{"10.64.1.2", long, "fd6d::1"}, Aliases: slices.Repeat([]string{"a"}, 100),
				})},
			}},
			timed(&recordv1.Status{
				State: musterv1.TaskState_RUNNING, At: 9000, Runtime: &musterv1.RuntimeStatus{
					Id: "i", Pid: 7, ExitCode: 3, OomKilled: true, Health: health(),
				},
				Ports: []*musterv1.PortConfig{
					{Name: long[:nodereport.MaxPortName], Protocol: musterv1.PortConfig_UDP, TargetPort: 80, PublishedPort: 8080, PublishMode: musterv1.PortConfig_HOST},
				},
				Networks: []*musterv1.NetworkAttachment{{
					NetworkId: long[:nodereport.MaxNetworkName-1], Addresses: []string{"10.64.1.2", long[:nodereport.MaxNetworkName-1]},
					Aliases: slices.Repeat([]string{"a"}, nodereport.MaxAliases),
				}},
			}, state.StateTime{State: musterv1.TaskState_RUNNING, At: 9000}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, ok := Observed(tt.report, now)
			if ok != (tt.want != nil) {
				t.Fatalf("observed = %v, %t", got, ok)
			}
			if diff := cmp.Diff(tt.want, got, protocmp.Transform()); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
			if !utf8.ValidString(got.GetError()) {
				t.Error("the error is cut within a character")
			}
		})
	}
}

// TestMergeIsMonotonic loses, repeats and delays reports, in any order: the state
// never goes back, the newest report wins, and a known report changes nothing.
func TestMergeIsMonotonic(t *testing.T) {
	t.Parallel()
	states := []musterv1.TaskState{
		musterv1.TaskState_ACCEPTED, musterv1.TaskState_PREPARING, musterv1.TaskState_READY,
		musterv1.TaskState_STARTING, musterv1.TaskState_RUNNING, musterv1.TaskState_FAILED,
	}
	rapid.Check(t, func(t *rapid.T) {
		// The worker's reports about a task, in order.
		var life []*recordv1.Status
		var times []state.StateTime
		at := int64(1)
		for _, s := range states[:rapid.IntRange(1, len(states)).Draw(t, "states")] {
			times = append(times, state.StateTime{State: s, At: at})
			for range rapid.IntRange(1, 3).Draw(t, "messages") {
				life = append(life, timed(&recordv1.Status{State: s, At: at, Message: rapid.StringMatching(`[a-c]`).Draw(t, "message")}, times...))
				at++
			}
		}
		// The order in which they arrive.
		order := rapid.SliceOfN(rapid.IntRange(0, len(life)-1), 0, 20).Draw(t, "order")
		var now *recordv1.Status
		newest := -1
		for _, i := range append(order, order...) {
			next := Merge(now, proto.Clone(life[i]).(*recordv1.Status))
			if now != nil && next.State < now.State {
				t.Fatalf("state fell from %s to %s", now.State, next.State)
			}
			if now != nil && i == newest && next != now {
				t.Fatal("a known report changed the record")
			}
			newest = max(newest, i)
			now = next
			if now.State != life[newest].State || now.Message != life[newest].Message {
				t.Fatalf("record is %v, want that of %v", now, life[newest])
			}
			if !slices.IsSorted(now.Reached) {
				t.Fatalf("timeline is out of order: %v", now.Reached)
			}
		}
		if newest >= 0 && len(now.Reached) != len(life[newest].Reached) {
			t.Fatalf("timeline has %d states, want %d", len(now.Reached), len(life[newest].Reached))
		}
	})
}

func TestMergeKeepsTimes(t *testing.T) {
	t.Parallel()
	old := timed(&recordv1.Status{State: musterv1.TaskState_READY, At: 3},
		state.StateTime{State: musterv1.TaskState_ACCEPTED, At: 1}, state.StateTime{State: musterv1.TaskState_READY, At: 3})
	got := Merge(old, timed(&recordv1.Status{State: musterv1.TaskState_RUNNING, At: 5},
		state.StateTime{State: musterv1.TaskState_ACCEPTED, At: 2}, state.StateTime{State: musterv1.TaskState_RUNNING, At: 5}))
	want := []state.StateTime{{State: musterv1.TaskState_ACCEPTED, At: 1}, {State: musterv1.TaskState_READY, At: 3}, {State: musterv1.TaskState_RUNNING, At: 5}}
	if diff := cmp.Diff(want, slices.Collect(state.Times(got))); diff != "" {
		t.Errorf("timeline (-want +got):\n%s", diff)
	}
}

func TestMergeKeepsTimeOfSending(t *testing.T) {
	t.Parallel()
	first := Merge(nil, &recordv1.Status{State: musterv1.TaskState_ACCEPTED, At: 2, SentAt: 1})
	// In a later session it is part of the complete set, without a time.
	again := Merge(first, &recordv1.Status{State: musterv1.TaskState_RUNNING, At: 5})
	if first.SentAt != 1 || again.SentAt != 1 {
		t.Errorf("sent at %d, then %d, want 1", first.SentAt, again.SentAt)
	}
}

func timed(s *recordv1.Status, times ...state.StateTime) *recordv1.Status {
	state.SetTimes(s, times)
	return s
}
