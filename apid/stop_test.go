package apid_test

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// A write that is under way when a replica is stopped comes to its end, and the
// client hears of it; what comes later is sent elsewhere.
func TestWritesUnderWayAreFinished(t *testing.T) {
	c := newCluster(t)
	a := c.apid()
	a.create(webSpec("first"))
	held := make(chan chan struct{})
	c.away.held.Store(&held)
	created := make(chan error, 1)
	go func() {
		_, err := a.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: webSpec("second")})
		created <- err
	}()
	goOn := <-held
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		a.stop()
	}()
	// It stops when it refuses what is new.
	for {
		_, err := a.ListServices(t.Context(), &musterv1.ListServicesRequest{})
		if status.Code(err) == codes.Unavailable {
			break
		}
	}
	select {
	case err := <-created:
		t.Fatalf("the write under way ended: %v", err)
	case <-stopped:
		t.Fatal("the replica has stopped before the write has ended")
	default:
	}
	c.away.held.Store(nil)
	close(goOn)
	if err := <-created; err != nil {
		t.Errorf("write under way: %v", err)
	}
	<-stopped
}
