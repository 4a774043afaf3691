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

// MaxMessage is the greatest gRPC message that daemons take from each other
// and from users, in bytes.
const MaxMessage = 4 << 20

const (
	// handshakeTimeout bounds the making of a connection.
	handshakeTimeout = 20 * time.Second
	// keepaliveTime is after how long a server pings a peer of which it reads nothing, and
	// keepaliveTimeout how long the answer may take. They also bound how long the frames
	// of a call's headers may take: there is no answer in between.
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
	// idleTimeout is how long a connection may have no call open. A client connects
	// again with its next call.
	idleTimeout = 5 * time.Minute
	// maxHeader bounds the headers of a request, as they are once unpacked.
	maxHeader = 64 << 10
	// maxStreams bounds the calls that are open on one connection, where nothing else
	// is said: more than anybody needs who means well. Further ones wait at the client.
	maxStreams = 10_000
	// readBuffer is the size of a connection's read buffer in bytes: some frames of the
	// usual size. What is larger is read past it.
	readBuffer = 4 << 10
)

// NewServer returns a gRPC server with the health service on it.
func NewServer(creds credentials.TransportCredentials, more ...grpc.ServerOption) (*grpc.Server, *health.Server) {
	server := grpc.NewServer(append([]grpc.ServerOption{
		grpc.Creds(creds),
		grpc.MaxRecvMsgSize(MaxMessage),
		// What a peer may take before it has shown who it is.
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.MaxConcurrentStreams(maxStreams),
		// An idle connection of a worker keeps a small buffer for reading, and by default
		// none for writing.
		grpc.ReadBufferSize(readBuffer),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout, MaxConnectionIdle: idleTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}, more...)...)
	h := health.NewServer()
	healthpb.RegisterHealthServer(server, h)
	return server, h
}

// Dialer returns a function that connects to other daemons: to one, or to the
// first that answers of several that are alike, with commas between.
func Dialer(creds credentials.TransportCredentials, more ...grpc.DialOption) func(string) (*grpc.ClientConn, error) {
	return func(address string) (*grpc.ClientConn, error) {
		// The passthrough resolver leaves the name to the dialler: what is dialled
		// is one replica, whose address the directory gave.
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

// connectParams keep a client from staying away for long from a peer that is
// back: gRPC's own default goes up to two minutes.
func connectParams() grpc.ConnectParams {
	p := grpc.ConnectParams{MinConnectTimeout: 2 * time.Second}
	p.Backoff.BaseDelay = 50 * time.Millisecond
	p.Backoff.Multiplier = 1.6
	p.Backoff.Jitter = 0.2
	p.Backoff.MaxDelay = 2 * time.Second
	return p
}

// ServeGRPC serves until ctx ends, then lets calls end within the grace time
// and cuts off those that did not.
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

// keptAlive is a listener of gRPC, which sets an option of TCP on connections that
// nothing wraps.
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

// StageBuckets are those of all histograms that tell how long a daemon took to
// bring tasks a stage further: from a millisecond to half a minute. They are
// alike, so that the stages can be compared and added up.
func StageBuckets() []float64 { return prometheus.ExponentialBuckets(0.001, 2, 16) }

// OpsHandler serves /metrics, /healthz, /readyz, /livez and /debug/pprof. Healthy
// says whether the process does its work; its error is for people. /readyz says
// whether it should get requests, as gRPC's health service does: also while the store
// is away, for reads are answered then; only one that is [Starting] is not. /livez says only that the process
// answers: ending one that cannot reach its store does not help.
// With a guard metrics are for viewers, profiles for admins, and who asks for the
// health learns no reasons.
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
