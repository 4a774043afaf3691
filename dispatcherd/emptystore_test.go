package dispatcherd

import (
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/store"
)

// TestEmptyStore has a worker that was admitted before come to a store that knows
// nothing of it: its tasks
// count as gone only if there are services, or the node itself is known.
func TestEmptyStore(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		tasks          uint32
		service, known bool
		want           codes.Code
	}{
		"nothing is known":         {tasks: 3, want: codes.FailedPrecondition},
		"a process's first hello":  {tasks: 0},
		"there are other services": {tasks: 3, service: true},
		"the node is known":        {tasks: 3, known: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, false)
				d := c.dispatcher("d1")
				if test.service {
					c.service("svc")
				}
				if test.known {
					c.update(func(tx *store.Tx) {
						c.tables.NodeStates.Put(tx, "n1", &recordv1.NodeState{Description: description("n1"), State: ready})
					})
				}
				synctest.Wait()
				w := c.newWorker("n1", c.dial(d.address))
				w.hello(&dispatcherv1.Hello{NodeId: "n1", InstanceId: "1", Description: description("n1"), Tasks: test.tasks})
				synctest.Wait()
				if got := status.Code(w.ended()); got != test.want {
					t.Errorf("the session ended with %v, want %v", w.ended(), test.want)
				}
				if admitted := welcomed(w) != nil; admitted != (test.want == codes.OK) {
					t.Errorf("welcomed: %t", admitted)
				}
			})
		})
	}
}
