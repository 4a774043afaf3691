package assignments_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
)

// TestFilesAreSentWithTasksThatRun has secrets come before the first task that runs with
// them, once, again with other data, and be withdrawn when the last such task must stop.
func TestFilesAreSentWithTasksThatRun(t *testing.T) {
	t.Parallel()
	loads := 0
	offer := func(id string, version uint64, digest string, desired musterv1.TaskState) assignments.Offer {
		o := assignments.Offer{
			Key: "n/s/" + id, Service: "s", ID: id, Version: 1,
			Task:    &dispatcherv1.AssignedTask{Id: id, ServiceName: "web", SpecDigest: []byte("d"), DesiredState: desired},
			Objects: []assignments.Object{{Ref: assignments.Ref{Kind: assignments.KindSpec, ID: "d"}, Message: &musterv1.TaskSpec{}}},
		}
		if desired <= musterv1.TaskState_COMPLETE {
			o.Objects = append(o.Objects, assignments.Object{
				Ref: assignments.Ref{Kind: assignments.KindSecret, ID: "x"}, Version: version, Digest: digest,
				Load: func() proto.Message {
					loads++
					return &dispatcherv1.AssignedSecret{Id: "x", Data: []byte(digest)}
				},
			})
		}
		return o
	}
	limits := assignments.Limits{Objects: 100, Bytes: 1 << 20}
	sent := assignments.NewSent(4)
	sent.Complete(nil, nil, limits)
	step := func(o assignments.Offer, want string) {
		t.Helper()
		got := ""
		for _, m := range sent.Changes([]assignments.Offer{o}, nil, limits, time.Now()) {
			for _, object := range m.Objects {
				if s := object.GetSecret(); s != nil {
					got += "secret " + string(s.Data) + ";"
				}
				if task := object.GetTask(); task != nil {
					got += "task " + task.Id + ";"
				}
			}
			for _, ref := range m.Withdrawn {
				if s := ref.GetSecret(); s != "" {
					got += "withdrawn;"
				}
			}
		}
		if got != want {
			t.Errorf("sent %q, want %q", got, want)
		}
	}
	running, shutdown := musterv1.TaskState_RUNNING, musterv1.TaskState_SHUTDOWN
	step(offer("a", 1, "one", running), "secret one;task a;")
	step(offer("b", 1, "one", running), "task b;")
	step(offer("a", 2, "one", running), "")
	step(offer("a", 3, "two", running), "secret two;task a;")
	step(offer("b", 3, "two", shutdown), "task b;")
	step(offer("a", 3, "two", shutdown), "task a;withdrawn;")
	step(offer("c", 3, "two", shutdown), "task c;")
	if loads != 2 {
		t.Errorf("the secret was opened %d times, want 2", loads)
	}
	old := assignments.NewSent(3)
	old.Complete(nil, nil, limits)
	if got := old.Changes([]assignments.Offer{offer("a", 1, "one", running)}, nil, limits, time.Now()); len(got) > 0 {
		t.Errorf("a worker of protocol 3 is sent %s", fmt.Sprint(got))
	}
}
