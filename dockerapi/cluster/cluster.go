// Package cluster serves the objects of the cluster in Docker's API: services, tasks,
// nodes, networks, secrets, configs, the swarm itself and its events.
package cluster

import (
	"context"
	"net/http"
	"strconv"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dockerapi/server"
)

// pageSize is the largest page of a list.
const pageSize = 1000

// Engine is the local Engine behind. It answers for what the cluster does not have.
type Engine interface {
	http.Handler
	// Get asks the Engine and decodes the answer.
	Get(ctx context.Context, path string, into any) error
	// Post is the same for a request that changes something.
	Post(ctx context.Context, path string, into any) error
}

// API serves the cluster's objects.
type API struct {
	Client musterv1.ControlServiceClient
	Logger *zap.Logger
	// Engine is nil if there is none.
	Engine Engine
	// Node names the node that clients call "self", by id or host name; empty: none.
	Node string
	// Version is Muster's.
	Version string
	// Ending ends streams when it ends; nil: they end with their clients.
	Ending context.Context
}

// streaming returns a request whose context also ends when the process is about to.
func (a *API) streaming(r *http.Request) (*http.Request, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	if a.Ending == nil {
		return r.WithContext(ctx), cancel
	}
	stop := context.AfterFunc(a.Ending, cancel)
	return r.WithContext(ctx), func() { stop(); cancel() }
}

// Routes adds all routes to a server.
func (a *API) Routes(s *server.Server) {
	a.systemRoutes(s)
	a.serviceRoutes(s)
	a.taskRoutes(s)
	a.nodeRoutes(s)
	a.networkRoutes(s)
	a.dataRoutes(s)
	a.swarmRoutes(s)
	// What else there may be below is that of a swarm of the Engine's own.
	for _, kind := range []string{"services", "tasks", "nodes", "secrets", "configs", "swarm"} {
		s.Handle("/"+kind, notThere)
		s.Handle("/"+kind+"/", notThere)
	}
}

func notThere(http.ResponseWriter, *http.Request) error {
	return server.Errorf(http.StatusNotFound, "page not found")
}

// pages lists all pages. Next asks for one, and returns the token of the next.
func pages[T any](next func(token string) ([]T, string, error)) ([]T, error) {
	var all []T
	token := ""
	for {
		page, following, err := next(token)
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		if following == "" {
			return all, nil
		}
		token = following
	}
}

// method is a method of the control API.
type method[Req, Resp any] func(ctx context.Context, req Req, options ...grpc.CallOption) (Resp, error)

// call makes one call about one object.
func call[Req, Resp any](ctx context.Context, m method[Req, Resp], req Req, kind, name string) (Resp, error) {
	resp, err := m(ctx, req)
	return resp, server.Of(err, kind, name)
}

// version reads the version that an update was decided on.
func version(r *http.Request, kind string) (uint64, error) {
	raw := r.URL.Query().Get("version")
	v, err := strconv.ParseUint(raw, 10, 64)
	if err != nil {
		return 0, server.Errorf(http.StatusBadRequest, "invalid %s version '%s': %v", kind, raw, err)
	}
	return v, nil
}

// list returns what a function makes of each, and never nil: clients want an array.
func list[A, B any](all []A, convert func(A) B) []B {
	out := make([]B, 0, len(all))
	for _, v := range all {
		out = append(out, convert(v))
	}
	return out
}
