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

// router sends each request to one of several agents or servers: to the same one
// until something goes wrong there, or it hangs (see guard), and then to the next. All of them see the
// same key space, so it does not matter which one answers.
type router struct {
	next   http.RoundTripper
	scheme string
	hosts  []string
	// current is the index of the host in use.
	current atomic.Int64
	began   time.Time
	// heard is when each host last answered anything, as the time since began.
	heard []atomic.Int64
}

func newRouter(next http.RoundTripper, scheme string, hosts []string) *router {
	return &router{next: next, scheme: scheme, hosts: hosts, began: time.Now(), heard: make([]atomic.Int64, len(hosts))}
}

type pinKey struct{}

// pin returns a context whose requests go to one host alone: what an agent keeps
// for itself (services and their checks) is nowhere else.
func pin(ctx context.Context, host string) context.Context {
	return context.WithValue(ctx, pinKey{}, host)
}

// host returns the one in use.
func (r *router) host() string { return r.hosts[r.current.Load()] }

func (r *router) RoundTrip(req *http.Request) (*http.Response, error) {
	if host, ok := req.Context().Value(pinKey{}).(string); ok {
		return r.send(req, slices.Index(r.hosts, host))
	}
	at := int(r.current.Load())
	for tried := 1; ; tried++ {
		resp, err := r.send(req, at)
		// Only what was surely not sent is sent elsewhere.
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
		at = (at + 1) % len(r.hosts)
	}
}

// send sends a request to one host. If that goes wrong, or the host answers that
// it cannot (it has no leader, say), later requests begin with the next.
func (r *router) send(req *http.Request, at int) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.URL.Host, req.Host = r.hosts[at], r.hosts[at]
	resp, err := r.guarded(req, at)
	if err != nil && (errors.Is(err, errHangs) || !errors.Is(err, context.Canceled)) || err == nil && resp.StatusCode >= http.StatusInternalServerError {
		r.current.CompareAndSwap(int64(at), int64((at+1)%len(r.hosts)))
	}
	return resp, err
}

// notSent reports whether a request failed before a connection stood.
func notSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}
