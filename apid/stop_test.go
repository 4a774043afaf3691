package apid_test

import (
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/kv/kvfault"
)

// A write that is under way when a replica is stopped comes to its end, and the
// client hears of it. Later calls are refused.
func TestStopWaitsForWritesUnderWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		a.create(webSpec("first"))
		release := c.faults.Inject(kvfault.Fault{Op: kvfault.Txn, When: func(c kvfault.Call) bool { return c.Writes }, Hang: true})
		created := make(chan error, 1)
		go func() {
			_, err := a.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: webSpec("second")})
			created <- err
		}()
		synctest.Wait()
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			a.stop()
		}()
		synctest.Wait()
		_, err := a.ListServices(t.Context(), &musterv1.ListServicesRequest{})
		wantCode(t, err, codes.Unavailable)
		select {
		case err := <-created:
			t.Fatalf("the write under way ended: %v", err)
		case <-stopped:
			t.Fatal("the replica has stopped before the write has ended")
		default:
		}
		release()
		if err := <-created; err != nil {
			t.Errorf("write under way: %v", err)
		}
		<-stopped
	})
}
