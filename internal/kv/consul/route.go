package consul

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

// router sends each request to one of several agents or servers. It uses the same host
// until the host fails or hangs (see guard), and then the next one. All hosts have the same
// key space, so any of them may answer.
type router struct {
	next   http.RoundTripper
	scheme string
	hosts  []string
	// current is the index of the host in use.
	current atomic.Int64
	began   time.Time
	// heard is when each host last sent anything, as the time since began.
	heard []atomic.Int64
	// silent is set for hosts that hang or refuse connections, until they answer again.
	// They are tried last, because noticing again that a host hangs takes seconds.
	silent []atomic.Bool
}

func newRouter(next http.RoundTripper, scheme string, hosts []string) *router {
	return &router{
		next: next, scheme: scheme, hosts: hosts, began: time.Now(),
		heard: make([]atomic.Int64, len(hosts)), silent: make([]atomic.Bool, len(hosts)),
	}
}

type pinKey struct{}

// pin returns a context whose requests go to one host only, because only that agent has
// the services and checks that were registered with it. Their failures do not move other
// requests to another host, unless the host is silent.
func pin(ctx context.Context, host string) context.Context {
	return context.WithValue(ctx, pinKey{}, host)
}

type blamelessKey struct{}

// blameless returns a context for a request for which a 500 does not mean that the host
// has failed.
func blameless(ctx context.Context) context.Context {
	return context.WithValue(ctx, blamelessKey{}, true)
}

func (r *router) RoundTrip(req *http.Request) (*http.Response, error) {
	if host, pinned := req.Context().Value(pinKey{}).(string); pinned {
		return r.send(req, slices.Index(r.hosts, host), true)
	}
	at := int(r.current.Load())
	for tried := 1; ; tried++ {
		resp, err := r.send(req, at, false)
		// Only a request that was certainly not sent may be sent to another host.
		if err == nil || !notSent(err) || tried == len(r.hosts) || req.Context().Err() != nil {
			return resp, err
		}
		if req.GetBody != nil {
			body, berr := req.GetBody()
			if berr != nil {
				return nil, err
			}
			req = req.Clone(req.Context())
			req.Body = body
		}
		at = r.after(at)
	}
}

// send sends a request to one host. If that fails, or the host answers with a server error
// (without a leader, for example), later requests start with the next host.
func (r *router) send(req *http.Request, at int, pinned bool) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.URL.Host, req.Host = r.hosts[at], r.hosts[at]
	resp, err := r.guarded(req, at)
	forgiven, _ := req.Context().Value(blamelessKey{}).(bool)
	switch {
	case errors.Is(err, errHangs), notSent(err):
		r.silent[at].Store(true)
		r.leave(at)
	case pinned, errors.Is(err, context.Canceled):
	case err != nil, resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode >= http.StatusInternalServerError && !forgiven:
		r.leave(at)
	}
	return resp, err
}

// leave makes later requests start with the next host.
func (r *router) leave(at int) { r.current.CompareAndSwap(int64(at), int64(r.after(at))) }

// after returns the host to try after another one: the next that is not silent, or the
// next one if all are silent.
func (r *router) after(at int) int {
	for i := 1; i < len(r.hosts); i++ {
		if next := (at + i) % len(r.hosts); !r.silent[next].Load() {
			return next
		}
	}
	return (at + 1) % len(r.hosts)
}

// notSent reports whether a request failed before its connection was established.
func notSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}
