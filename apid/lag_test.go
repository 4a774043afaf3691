package apid_test

import (
	"testing"
	"testing/synctest"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/kv/kvfault"
)

// TestServiceIsNeverShownWithoutItsTaskSpec asks a replica that sees task specs later
// than services: a client that writes such a service back would be refused.
func TestServiceIsNeverShownWithoutItsTaskSpec(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		here, there := c.apid(), c.apid()
		synctest.Wait()
		defer c.faults.Inject(kvfault.Fault{Op: kvfault.List, Prefix: "muster/specs/", Delay: 5 * time.Second})()
		here.create(webSpec("web"))
		synctest.Wait()
		resp, err := there.GetService(t.Context(), &musterv1.GetServiceRequest{Service: "web"})
		if err != nil {
			t.Fatal(err)
		}
		if image := resp.Service.Spec.GetTask().GetContainer().GetImage(); image == "" {
			t.Errorf("the service has no image: %v", resp.Service.Spec)
		}
	})
}
