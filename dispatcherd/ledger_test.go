package dispatcherd

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// model is a worker that does what it is told.
type model struct {
	tasks map[string]*dispatcherv1.AssignedTask
	specs map[string]*musterv1.TaskSpec
	// among collects the ids of a complete set that has begun.
	among map[string]bool
}

func newModel() *model {
	return &model{tasks: map[string]*dispatcherv1.AssignedTask{}, specs: map[string]*musterv1.TaskSpec{}}
}

// apply applies one message, as it would come over the wire.
func (m *model) apply(a *dispatcherv1.Assignments) error {
	if a.Complete && m.among == nil {
		m.among = map[string]bool{}
	}
	for _, s := range a.Specs {
		if m.specs[string(s.Digest)] != nil {
			return fmt.Errorf("spec %x is sent twice", s.Digest)
		}
		m.specs[string(s.Digest)] = s.Spec
	}
	for _, t := range a.Tasks {
		m.tasks[t.Id] = t
		if m.specs[string(t.SpecDigest)] == nil && t.KnownState < musterv1.TaskState_ACCEPTED && t.DesiredState <= musterv1.TaskState_COMPLETE {
			return fmt.Errorf("task %s comes before its spec", t.Id)
		}
		if m.among != nil {
			m.among[t.Id] = true
		}
	}
	for _, id := range a.Removed {
		if m.tasks[id] == nil {
			return fmt.Errorf("task %s is removed, and was never there", id)
		}
		delete(m.tasks, id)
	}
	if a.Last {
		maps.DeleteFunc(m.tasks, func(id string, _ *dispatcherv1.AssignedTask) bool { return !m.among[id] })
		m.among = nil
	}
	return nil
}

// world is what the records say of one node.
type world struct {
	offers map[string]offer
	specs  map[string]bool
	clock  uint64
}

func (w *world) see(key string) offer {
	o, ok := w.offers[key]
	if !ok {
		return offer{key: key, id: key[len("n/s/"):], service: "s"}
	}
	if o.task == nil {
		return o
	}
	// A snapshot makes the join anew each time.
	o.task = proto.Clone(o.task).(*dispatcherv1.AssignedTask)
	o.lags = false
	if w.specs[string(o.task.SpecDigest)] {
		o.spec = &musterv1.TaskSpec{}
	} else {
		o.lags = o.task.DesiredState <= musterv1.TaskState_COMPLETE
	}
	return o
}

func (w *world) all() []offer {
	var all []offer
	for _, key := range slices.Sorted(maps.Keys(w.offers)) {
		all = append(all, w.see(key))
	}
	return all
}

// TestLedgerBringsWorkerToSnapshot checks that a worker that applies what it
// is sent ends up with exactly what the newest snapshot says, whatever changed
// in between, however little was sent at once, and whatever was late.
func TestLedgerBringsWorkerToSnapshot(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := &world{offers: map[string]offer{}, specs: map[string]bool{}}
		size := packing{tasks: rapid.IntRange(1, 5).Draw(t, "tasks a message"), bytes: rapid.IntRange(1, 400).Draw(t, "bytes a message")}
		worker := newModel()
		// The worker may come with tasks of its last session.
		for _, id := range rapid.SliceOfDistinct(rapid.SampledFrom([]string{"0", "1", "2", "old"}), rapid.ID).Draw(t, "old tasks") {
			worker.tasks[id] = &dispatcherv1.AssignedTask{Id: id}
		}
		desired := []musterv1.TaskState{musterv1.TaskState_READY, musterv1.TaskState_RUNNING, musterv1.TaskState_SHUTDOWN, musterv1.TaskState_REMOVE}
		dirty := map[string]bool{}
		change := func() {
			w.clock++
			// A task that is gone does not come back: ids are never used again.
			key := fmt.Sprintf("n/s/%d", w.clock)
			if keys := slices.Sorted(maps.Keys(w.offers)); len(keys) > 0 && rapid.Bool().Draw(t, "of a task") {
				key = rapid.SampledFrom(keys).Draw(t, "task")
			}
			dirty[key] = true
			o, ok := w.offers[key]
			switch what := rapid.IntRange(0, 9).Draw(t, "what"); {
			case ok && o.task == nil:
				delete(w.offers, key)
			case !ok:
				w.offers[key] = offer{key: key, id: key[len("n/s/"):], service: "s", version: w.clock, task: &dispatcherv1.AssignedTask{
					Id: key[len("n/s/"):], ServiceId: "s", ServiceName: "web", DesiredState: rapid.SampledFrom(desired[:2]).Draw(t, "desired"),
					SpecDigest: []byte(rapid.StringMatching(`[a-c]`).Draw(t, "digest")),
					KnownState: rapid.SampledFrom([]musterv1.TaskState{0, musterv1.TaskState_RUNNING}).Draw(t, "known"),
				}}
			case what < 4:
				o.task = proto.Clone(o.task).(*dispatcherv1.AssignedTask)
				o.task.DesiredState = max(o.task.DesiredState, rapid.SampledFrom(desired).Draw(t, "desired"))
				w.offers[key] = o
			case what < 5: // the ports
				o.version = w.clock
				w.offers[key] = o
			case what < 7: // the task's record
				o.task, o.lags = nil, true
				w.offers[key] = o
			default: // the assignment
				delete(w.offers, key)
			}
		}
		appear := func() {
			w.specs[rapid.StringMatching(`[a-c]`).Draw(t, "spec")] = true
		}
		deliver := func(messages []*dispatcherv1.Assignments) {
			for _, m := range messages {
				if len(m.Tasks)+len(m.Removed) > size.tasks {
					t.Fatalf("a message holds %d tasks and %d removals, at most %d are allowed", len(m.Tasks), len(m.Removed), size.tasks)
				}
				if n := proto.Size(m); len(m.Tasks)+len(m.Removed) > 1 && n > size.bytes+100 {
					t.Fatalf("a message has %d bytes, at most about %d are allowed", n, size.bytes)
				}
				if err := worker.apply(m); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range rapid.IntRange(0, 20).Draw(t, "before") {
			change()
		}
		if rapid.Bool().Draw(t, "spec is there") {
			appear()
		}
		l := newLedger()
		clear(dirty)
		deliver(l.complete(w.all(), size))
		rounds := rapid.IntRange(0, 20).Draw(t, "rounds")
		for range rounds {
			for range rapid.IntRange(0, 5).Draw(t, "changes") {
				change()
			}
			if rapid.IntRange(0, 3).Draw(t, "spec") == 0 {
				appear()
				for key := range l.waiting {
					dirty[key] = true
				}
			}
			var offers []offer
			for _, key := range slices.Sorted(maps.Keys(dirty)) {
				offers = append(offers, w.see(key))
			}
			clear(dirty)
			deliver(l.changes(offers, size, time.Now()))
		}
		// At last all specs are there.
		w.specs = map[string]bool{"a": true, "b": true, "c": true}
		var offers []offer
		for _, key := range slices.Sorted(maps.Keys(l.waiting)) {
			offers = append(offers, w.see(key))
		}
		deliver(l.changes(offers, size, time.Now()))
		if len(l.waiting) > 0 {
			t.Fatalf("%d offers wait, and all is there", len(l.waiting))
		}
		want := map[string]*dispatcherv1.AssignedTask{}
		for _, o := range w.all() {
			if o.task != nil {
				want[o.id] = o.task
			}
		}
		if len(want) != len(worker.tasks) {
			t.Fatalf("worker has tasks %v, want %v", slices.Sorted(maps.Keys(worker.tasks)), slices.Sorted(maps.Keys(want)))
		}
		for id, task := range want {
			got := worker.tasks[id]
			if got == nil {
				t.Fatalf("worker misses task %s", id)
			}
			if got.DesiredState != task.DesiredState || string(got.SpecDigest) != string(task.SpecDigest) {
				t.Fatalf("worker's task is %v, want %v", got, task)
			}
			if worker.specs[string(got.SpecDigest)] == nil && got.DesiredState <= musterv1.TaskState_COMPLETE {
				t.Fatalf("worker misses the spec of task %s", id)
			}
		}
		// Nothing has changed: there is nothing to say.
		if again := l.changes(w.all(), size, time.Now()); len(again) != 0 {
			t.Fatalf("without a change %d messages are sent", len(again))
		}
	})
}

func TestLedgerCompleteOfNothing(t *testing.T) {
	t.Parallel()
	got := newLedger().complete(nil, packing{tasks: 10, bytes: 100})
	if len(got) != 1 || !got[0].Complete || !got[0].Last {
		t.Fatalf("the complete set of no tasks is %v, want one empty message", got)
	}
}
