package apid_test

import (
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// TestReplicaThatLags has a replica change services that it has not heard of: it
// does not refuse on the ground of what it does not know.
func TestReplicaThatLags(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		lags, other := c.apid(), c.apid()
		lags.create(webSpec("known"))
		// From here on each replica knows what it has done itself.
		settled(t, "the other replica knows of the service", func() bool {
			resp, err := other.ListServices(t.Context(), &musterv1.ListServicesRequest{})
			return err == nil && len(resp.Services) == 1
		})
		c.muted.on.Store(true)

		for _, name := range []string{"new", "newer", "known"} {
			ref := name
			if name == "known" {
				if _, err := other.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: name}); err != nil {
					t.Fatal(err)
				}
			}
			made := other.create(webSpec(name))
			if name == "newer" {
				ref = made.Id
			}
			scaled, err := lags.ScaleService(t.Context(), &musterv1.ScaleServiceRequest{Service: ref, Replicas: 7})
			if err != nil || scaled.Service.Id != made.Id {
				t.Errorf("scale %s: %v, %v; want service %s scaled", name, scaled, err, made.Id)
			}
		}
		if _, err := lags.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: "new"}); err != nil {
			t.Error(err)
		}
		_, err := lags.ScaleService(t.Context(), &musterv1.ScaleServiceRequest{Service: "never", Replicas: 7})
		wantCode(t, err, codes.NotFound)
	})
}

// TestChangeBackAtAReplicaThatLags asks a replica for what it takes to be so, and is
// not any more: it must not accept that and do nothing.
func TestChangeBackAtAReplicaThatLags(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		lags, other := c.apid(), c.apid()
		made := lags.create(webSpec("web"))
		scale := func(a *api, n uint64) {
			t.Helper()
			if _, err := a.ScaleService(t.Context(), &musterv1.ScaleServiceRequest{Service: made.Id, Replicas: n}); err != nil {
				t.Fatal(err)
			}
		}
		scale(lags, 3)
		settled(t, "the other replica knows of the service", func() bool {
			resp, err := other.ListServices(t.Context(), &musterv1.ListServicesRequest{})
			return err == nil && len(resp.Services) == 1
		})
		c.muted.on.Store(true)
		scale(other, 5)
		scale(lags, 3)
		settled(t, "the service has 3 replicas", func() bool {
			e, ok := c.tables.Services.Get(c.store.Snapshot(), made.Id)
			return ok && e.Value.Spec.GetReplicated().GetReplicas() == 3
		})
	})
}
