package dispatcherd

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// TestScatteredChanges gives each of some nodes three tasks, one commit apart from the
// next. Many nodes are told of the second and the third in one message; few are told
// at once.
func TestScatteredChanges(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ nodes, messages int }{{manyNodes, 2}, {manyNodes - 1, 3}} {
		t.Run(fmt.Sprint(test.nodes, " nodes"), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, true)
				d := c.dispatcher("d1")
				c.service("svc")
				synctest.Wait()
				conn := c.dial(d.address)
				workers := make([]*worker, test.nodes)
				for i := range workers {
					workers[i] = c.newWorker(fmt.Sprint("n", i), conn)
					workers[i].hello(&dispatcherv1.Hello{NodeId: workers[i].node, InstanceId: "1", Description: description(workers[i].node)})
				}
				time.Sleep(time.Second)
				synctest.Wait()
				each := func(round int, do func(node, task string, slot uint64)) {
					for i, w := range workers {
						do(w.node, fmt.Sprint("t", round, "-", i), uint64(round*test.nodes+i+1))
					}
				}
				// Tables are followed each for itself: tasks are there before they are assigned.
				c.update(func(tx *store.Tx) {
					for round := range 3 {
						each(round, func(node, task string, slot uint64) {
							c.tables.Tasks.Put(tx, state.TaskKey("svc", slot, node, task), &recordv1.Task{
								Slot: slot, SpecDigest: []byte("digest-of-svc"), DesiredState: musterv1.TaskState_RUNNING,
							})
						})
					}
				})
				time.Sleep(time.Second)
				for round := range 3 {
					c.update(func(tx *store.Tx) {
						each(round, func(node, task string, slot uint64) {
							c.tables.Assignments.Put(tx, state.NodeTaskKey(node, "svc", task), &recordv1.Assignment{Slot: slot})
						})
					})
					time.Sleep(time.Millisecond)
				}
				time.Sleep(time.Second)
				for _, w := range workers {
					// The first message is the complete set that begins a session.
					if got := get(w, func(w *worker) int { return len(w.messages) }) - 1; got != test.messages || len(w.tasks()) != 3 {
						t.Fatalf("%s was told of %d tasks in %d messages, want 3 in %d", w.node, len(w.tasks()), got, test.messages)
					}
				}
			})
		})
	}
}
