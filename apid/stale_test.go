package apid_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// TestStoreGone cuts a replica off from its store: what it knows it still tells, and
// says how old that may be; what it is asked to change it refuses in time, and
// surely has not changed.
func TestStoreGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		a.create(webSpec("web"))
		if _, stale := a.read(); stale != "" {
			t.Errorf("an answer is marked with %q while the store is there", stale)
		}
		mend := c.faults.Cut()
		eventually(t, "answers are marked", func() bool { s, stale := a.read(); return s == "web" && stale != "" })

		for path, wants := range map[string]string{"/v1/services/web": "web", "/v1/watch": ""} {
			ctx, cancel := context.WithCancel(t.Context())
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, restURL+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := a.http.Do(req)
			if err != nil {
				t.Fatalf("%s: %v", wants, err)
			}
			if resp.StatusCode != http.StatusOK || resp.Header.Get(musterv1.StaleHeader) == "" {
				t.Errorf("GET %s: %s, marked with %q", path, resp.Status, resp.Header.Get(musterv1.StaleHeader))
			}
			cancel()
			_ = resp.Body.Close()
		}
		stream, err := a.Watch(t.Context(), &musterv1.WatchRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if header, err := stream.Header(); err != nil || len(header.Get(musterv1.StaleHeader)) != 1 {
			t.Errorf("watch: header %v, %v", header, err)
		}

		// The client hears it although its deadline is shorter than the server's.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = a.CreateService(ctx, &musterv1.CreateServiceRequest{Spec: webSpec("other")})
		wantCode(t, err, codes.Unavailable)
		if text := status.Convert(err).Message(); !strings.Contains(text, "the store has not answered for") || !strings.Contains(text, "nothing was changed") {
			t.Errorf("the client is told %q", text)
		}

		m, err := a.GetClusterStatus(t.Context(), &musterv1.GetClusterStatusRequest{})
		if err != nil || m.Healthy || m.Store.Reachable || m.Store.StaleFor.AsDuration() <= 0 || len(m.Daemons) != 1 {
			t.Errorf("status = %v, %v, want that the store is away, and the instance that was known", m, err)
		}

		// What is asked for while the store is away is done when it is back in time.
		done := make(chan error, 1)
		go func() {
			_, err := a.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: webSpec("later")})
			done <- err
		}()
		mend()
		if err := <-done; err != nil {
			t.Errorf("a service asked for while the store came back: %v", err)
		}
		eventually(t, "answers are no longer marked", func() bool { _, stale := a.read(); return stale == "" })
		if _, err := a.GetService(t.Context(), &musterv1.GetServiceRequest{Service: "other"}); status.Code(err) != codes.NotFound {
			t.Errorf("the service that was refused: %v, want that there is none", err)
		}
	})
}

// read returns the service's name, and what its answer is marked with.
func (a *api) read() (name, stale string) {
	a.t.Helper()
	var header metadata.MD
	resp, err := a.GetService(a.t.Context(), &musterv1.GetServiceRequest{Service: "web"}, grpc.Header(&header))
	if err != nil {
		a.t.Fatal(err)
	}
	if v := header.Get(musterv1.StaleHeader); len(v) > 0 {
		stale = v[0]
	}
	return resp.Service.Spec.Name, stale
}

// TestStartedWithoutStore: a replica that has read nothing yet says why.
func TestStartedWithoutStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		mend := c.faults.Cut()
		a := c.apid()
		_, err := a.ListServices(t.Context(), &musterv1.ListServicesRequest{})
		wantCode(t, err, codes.Unavailable)
		if text := status.Convert(err).Message(); !strings.Contains(text, "the store has not answered for") {
			t.Errorf("the client is told %q", text)
		}
		if m, err := a.GetClusterStatus(t.Context(), &musterv1.GetClusterStatusRequest{}); err != nil || m.Healthy || m.Nodes != nil {
			t.Errorf("status = %v, %v", m, err)
		}
		mend()
		eventually(t, "it has read everything", func() bool {
			_, err := a.ListServices(t.Context(), &musterv1.ListServicesRequest{})
			return err == nil
		})
	})
}
