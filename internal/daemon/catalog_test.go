package daemon_test

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/test/kit/consultest"
)

// entry is a service in Consul's catalog, with the states of its checks.
type entry struct {
	Service struct {
		ID, Service, Address string
		Port                 int
		Meta                 map[string]string
	}
	Checks []struct{ CheckID, Status string }
}

func catalog(t *testing.T, server *consultest.Server) []entry {
	t.Helper()
	resp, err := http.Get("http://" + server.Address + "/v1/health/service/muster-testd")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var found []entry
	if err := json.NewDecoder(resp.Body).Decode(&found); err != nil {
		t.Fatal(err)
	}
	return found
}

// TestCatalog looks at a daemon as others find it in Consul.
func TestCatalog(t *testing.T) {
	t.Parallel()
	server := consultest.Start(t)
	h := start(t, server.KV(t), time.Minute)
	<-h.daemon.up
	found := catalog(t, server)
	if len(found) != 1 {
		t.Fatalf("%d entries in the catalog, want 1", len(found))
	}
	m := h.daemon.env.Member
	s := found[0].Service
	want := map[string]string{"version": "v1", "instance": m.Instance, "prefix": "test", "check-address": h.address}
	if diff := cmp.Diff(want, s.Meta); diff != "" || s.ID != "muster-testd-"+m.Instance || s.Address != "127.0.0.1" || s.Port == 0 {
		t.Errorf("entry %+v; its metadata (-want +got):\n%s", s, diff)
	}
	for _, c := range found[0].Checks {
		if c.Status != "passing" {
			t.Errorf("check %s is %s, want passing", c.CheckID, c.Status)
		}
	}
	h.cancel()
	close(h.daemon.may)
	if err := <-h.ended; err != nil {
		t.Error(err)
	}
	// The agent tells the servers in its own time.
	for range time.Tick(10 * time.Millisecond) {
		if len(catalog(t, server)) == 0 {
			break
		}
	}
}
