package serve

import (
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/musterhq/muster/internal/daemon"
)

// TestHostNames asks the HTTP servers of a daemon that has a name, and of a whole
// cluster in one process, under several names.
func TestHostNames(t *testing.T) {
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	s := &daemon.Settings{Listen: "10.0.0.1:7700", Advertise: "apid.internal:7700", OpsListen: ":8700", AllowedHosts: []string{"Muster.Example.com", "*.many.example"}}
	s.Join.Hosts = []string{"apid"}
	of := func(h daemon.Hosts) http.Handler {
		return h.Check(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	}
	apid, dev := of(hostsOf(s, daemon.Plain(), "rest.internal:7780")), of(thisMachine(s))
	const yes, no = http.StatusOK, http.StatusForbidden
	for host, want := range map[string]struct{ apid, dev int }{
		"127.0.0.1:7780": {yes, yes}, "localhost": {yes, yes}, "LOCALHOST.:7780": {yes, yes}, "[::1]:7780": {yes, yes}, "[::1]": {yes, yes},
		"muster.example.com:443": {yes, yes}, "a.many.example": {yes, yes}, "many.example": {no, no}, "a.b.many.example": {no, no}, "10.0.0.1:7780": {yes, no}, "[fd00::1]:7780": {yes, no}, own: {yes, no},
		"apid.internal": {yes, no}, "rest.internal:7780": {yes, no}, "apid:7780": {yes, no},
		"rebound.example:7780": {no, no}, "rebound.example": {no, no}, "127.0.0.1.rebound.example": {no, no}, "sub.muster.example.com": {no, no},
		"localhost.rebound.example": {no, no}, "": {no, no}, ":7780": {no, no}, ".": {no, no},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/services", nil)
		r.Host = host
		for name, server := range map[string]struct {
			http.Handler
			want int
		}{"apid": {apid, want.apid}, "dev": {dev, want.dev}} {
			w := httptest.NewRecorder()
			server.ServeHTTP(w, r)
			if w.Code != server.want {
				t.Errorf("%s answers a request for host %q with %d, want %d", name, host, w.Code, server.want)
			}
		}
	}
}
