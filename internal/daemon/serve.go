package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	"github.com/musterhq/muster/internal/auth"
)

// MaxMessage is the largest gRPC message in bytes that daemons accept from each other and
// from users.
const MaxMessage = 4 << 20

const (
	// handshakeTimeout bounds the handshake of a connection.
	handshakeTimeout = 20 * time.Second
	// keepaliveTime is how long a server waits for data before it pings the peer, and
	// keepaliveTimeout is how long the answer may take. They also bound how long the
	// headers of a call may take, because there is no answer in between.
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
	// idleTimeout is how long a connection may have no open call. A client connects again
	// with its next call.
	idleTimeout = 5 * time.Minute
	// maxHeader bounds the unpacked headers of a request.
	maxHeader = 64 << 10
	// maxStreams is the default bound on open calls of one connection. It is more than any
	// well-behaved client needs. Further calls wait at the client.
	maxStreams = 10_000
	// readBuffer is the size of a connection's read buffer in bytes: some frames of the
	// usual size. Larger frames are read without it.
	readBuffer = 4 << 10
)

// NewServer returns a gRPC server that has the health service.
func NewServer(creds credentials.TransportCredentials, more ...grpc.ServerOption) (*grpc.Server, *health.Server) {
	server := grpc.NewServer(append([]grpc.ServerOption{
		grpc.Creds(creds),
		grpc.MaxRecvMsgSize(MaxMessage),
		// Bounds for a peer that has not authenticated yet.
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.MaxConcurrentStreams(maxStreams),
		// An idle connection of a worker keeps a small read buffer, and by default no write
		// buffer.
		grpc.ReadBufferSize(readBuffer),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout, MaxConnectionIdle: idleTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}, more...)...)
	h := health.NewServer()
	healthpb.RegisterHealthServer(server, h)
	return server, h
}

// Dialer returns a function that connects to other daemons: to one, or to the first that
// answers of several equal ones, separated by commas.
func Dialer(creds credentials.TransportCredentials, more ...grpc.DialOption) func(string) (*grpc.ClientConn, error) {
	return func(address string) (*grpc.ClientConn, error) {
		// The passthrough resolver leaves the address to the dialler. It is the address of
		// one replica, from the directory.
		target, options := "passthrough:///"+address, slices.Clip(more)
		if all := strings.Split(address, ","); len(all) > 1 {
			several := manual.NewBuilderWithScheme("several")
			var endpoints []resolver.Endpoint
			for _, a := range all {
				endpoints = append(endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: a}}})
			}
			several.InitialState(resolver.State{Endpoints: endpoints})
			target, options = "several:///"+all[0], append(options, grpc.WithResolvers(several))
		}
		conn, err := grpc.NewClient(target, append(options,
			grpc.WithTransportCredentials(creds),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(4*MaxMessage)),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
			grpc.WithConnectParams(connectParams()),
		)...)
		if err != nil {
			return nil, fmt.Errorf("connect to %s: %w", address, err)
		}
		return conn, nil
	}
}

// connectParams keep a client from waiting long for a peer that is back. gRPC's own default
// waits up to two minutes.
func connectParams() grpc.ConnectParams {
	p := grpc.ConnectParams{MinConnectTimeout: 2 * time.Second}
	p.Backoff.BaseDelay = 50 * time.Millisecond
	p.Backoff.Multiplier = 1.6
	p.Backoff.Jitter = 0.2
	p.Backoff.MaxDelay = 2 * time.Second
	return p
}

// ServeGRPC serves until ctx ends, then lets calls end within the grace time and closes the
// others.
func ServeGRPC(ctx context.Context, server *grpc.Server, listener net.Listener, grace time.Duration) error {
	done := make(chan error, 1)
	go func() { done <- server.Serve(keptAlive{listener}) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	cut := time.AfterFunc(grace, server.Stop)
	defer cut.Stop()
	server.GracefulStop()
	if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// keptAlive is a listener for gRPC that sets a TCP option on connections that nothing has
// wrapped.
type keptAlive struct{ net.Listener }

func (l keptAlive) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if wrapped, ok := conn.(*boundedConn); ok {
		keepUserTimeout(wrapped.Conn)
	}
	return conn, err
}

// NewRegistry returns a registry with the metrics of the process.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// StageBuckets are the buckets of all histograms of how long a daemon takes to bring tasks
// one stage further: from a millisecond to half a minute. They are equal, so that stages
// can be compared and added.
func StageBuckets() []float64 { return prometheus.ExponentialBuckets(0.001, 2, 16) }

// OpsHandler serves /metrics, /healthz, /readyz, /livez and /debug/pprof. Healthy reports
// whether the process can work; its error is for people. /readyz reports whether the
// process should get requests, as gRPC's health service does. Reads work while the store is
// away, so only a process that is [Starting] is not ready. /livez only reports that the
// process answers: to end one that cannot reach its store would not help. With a guard,
// metrics require a viewer and profiles an administrator, and /healthz gives no reasons.
func OpsHandler(metrics prometheus.Gatherer, healthy func() error, guard *auth.Guard) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", guard.Page(promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}), "/metrics", authv1.Role_VIEWER))
	answer := func(w http.ResponseWriter, err error) {
		if err != nil {
			if guard != nil {
				err = errors.New("unavailable")
			}
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, healthy()) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		err := healthy()
		var starting *Starting
		if !errors.As(err, &starting) {
			err = nil
		}
		answer(w, err)
	})
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	debug := http.NewServeMux()
	debug.HandleFunc("/debug/pprof/", pprof.Index)
	debug.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	debug.HandleFunc("/debug/pprof/profile", pprof.Profile)
	debug.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	debug.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.Handle("/debug/pprof/", guard.Page(debug, "/debug/pprof", authv1.Role_ADMIN))
	return mux
}
