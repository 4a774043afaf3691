package liveness

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func TestRecord(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(5000)
	described := &musterv1.NodeDescription{Hostname: "one"}
	have := &recordv1.NodeState{
		Description: described, State: musterv1.NodeStatus_READY, Address: "10.0.0.1", InstanceId: "a", Since: 1000, CreatedAt: 500,
	}
	with := func(change func(*recordv1.NodeState)) *recordv1.NodeState {
		r := &recordv1.NodeState{
			Description: described, State: musterv1.NodeStatus_READY, Address: "10.0.0.1", InstanceId: "a", Since: 1000, CreatedAt: 500,
		}
		change(r)
		return r
	}
	alive := nodeStatus{state: musterv1.NodeStatus_READY, description: described, address: "10.0.0.1", instance: "a"}
	for name, tt := range map[string]struct {
		status nodeStatus
		have   *recordv1.NodeState
		want   *recordv1.NodeState
		same   bool
	}{
		"is the same":              {status: alive, have: have, want: have, same: true},
		"must not change":          {status: nodeStatus{}, have: have, want: have, same: true},
		"never had a session":      {status: nodeStatus{state: musterv1.NodeStatus_DOWN}, want: nil, same: true},
		"a newer worker is alive":  {status: nodeStatus{state: musterv1.NodeStatus_DOWN, description: described, instance: "old"}, have: have, want: have, same: true},
		"is new":                   {status: alive, want: with(func(r *recordv1.NodeState) { r.Since, r.CreatedAt = 5000, 5000 })},
		"has a new worker process": {status: nodeStatus{state: musterv1.NodeStatus_READY, description: described, address: "10.0.0.2", instance: "b"}, have: have, want: with(func(r *recordv1.NodeState) { r.Address, r.InstanceId = "10.0.0.2", "b" })},
		"has a new description": {
			status: nodeStatus{state: musterv1.NodeStatus_READY, description: &musterv1.NodeDescription{Hostname: "two"}, address: "10.0.0.1", instance: "a"},
			have:   have, want: with(func(r *recordv1.NodeState) { r.Description = &musterv1.NodeDescription{Hostname: "two"} }),
		},
		"is down, not heard since a takeover": {
			status: nodeStatus{state: musterv1.NodeStatus_DOWN, message: "gone"}, have: have,
			want: with(func(r *recordv1.NodeState) {
				r.State, r.Message, r.Since = musterv1.NodeStatus_DOWN, "gone", 5000
			}),
		},
		"is down for another reason": {
			status: nodeStatus{state: musterv1.NodeStatus_DOWN, message: "other"},
			have:   with(func(r *recordv1.NodeState) { r.State, r.Message = musterv1.NodeStatus_DOWN, "gone" }),
			want:   with(func(r *recordv1.NodeState) { r.State, r.Message = musterv1.NodeStatus_DOWN, "gone" }),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := tt.status.record(tt.have, now)
			if diff := cmp.Diff(tt.want, got, protocmp.Transform()); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
			if tt.same && got != tt.have {
				t.Error("a record that needs no change is another one")
			}
		})
	}
}
