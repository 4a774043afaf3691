// Package limit bounds how often a client may call a server, and how many streams
// it may have open. A client is identified by the identity that the guard found,
// otherwise by its host. Clients without an identity, and refused calls, have limits of
// their own.
package limit

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"

	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/quota"
)

// together is the ratio between the limits of unauthenticated calls from all hosts and
// from one host. It protects Consul. The price: this many hosts can use up the limit, and
// keep others from joining.
const together = 40

// The limits, as metrics and logs call them.
const (
	limitClient             = "client"
	limitUnauthenticated    = "unauthenticated"
	limitAllUnauthenticated = "all_unauthenticated"
	limitRefused            = "refused"
	limitWatches            = "client_watches"
	limitLogs               = "client_logs"
)

// Limits limit the calls of one server. A nil Limits admits every call.
type Limits struct {
	settings Settings
	log      *zap.Logger
	exceeded *prometheus.CounterVec
	// allUnauthenticated has one key for all.
	clients, unauthenticated, refused, allUnauthenticated *quota.Rate
	watches, logs                                         *streams
}

// New returns limits. Closed is true if callers must have an identity, which a guard
// checks.
func New(s Settings, closed bool, log *zap.Logger, metrics prometheus.Registerer) (*Limits, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	s = s.effective(closed)
	l := &Limits{
		settings: s,
		// A client must not fill the log by calling too often.
		log: log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
			return zapcore.NewSamplerWithOptions(c, time.Second, 5, 1000)
		})),
		exceeded: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_rate_exceeded_total", Help: "Calls that were refused because there were too many, by limit.",
		}, []string{"limit"}),
		clients:            quota.NewRate(s.ClientRate, s.ClientBurst),
		unauthenticated:    quota.NewRate(s.UnauthenticatedRate, s.UnauthenticatedBurst),
		refused:            quota.NewRate(s.UnauthenticatedRate, s.UnauthenticatedBurst),
		allUnauthenticated: quota.NewRate(together*s.UnauthenticatedRate, together*s.UnauthenticatedBurst),
		watches:            &streams{limitWatches, "watches", "--client-watches", s.ClientWatches, quota.NewOpen(s.ClientWatches)},
		logs:               &streams{limitLogs, "log streams", "--client-logs", s.ClientLogs, quota.NewOpen(s.ClientLogs)},
	}
	for _, name := range []string{limitClient, limitUnauthenticated, limitAllUnauthenticated, limitRefused, limitWatches, limitLogs} {
		l.exceeded.WithLabelValues(name)
	}
	if err := metrics.Register(l.exceeded); err != nil {
		return nil, fmt.Errorf("register metrics of limits: %w", err)
	}
	return l, nil
}

// ServerOptions make a gRPC server limit calls. They must follow the guard's options,
// which identify the caller.
func (l *Limits) ServerOptions() []grpc.ServerOption {
	if l == nil {
		return nil
	}
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := l.admit(ctx, info.FullMethod, addressIn(ctx)); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := l.admit(stream.Context(), info.FullMethod, addressIn(stream.Context())); err != nil {
				return err
			}
			release, err := l.Stream(stream.Context(), info.FullMethod)
			if err != nil {
				return err
			}
			defer release()
			return next(srv, stream)
		}),
	}
}

// REST admits a request as a call of a method, or returns why not. The context of the
// request holds the caller.
func (l *Limits) REST(r *http.Request, method string) error {
	if l == nil {
		return nil
	}
	return l.admit(r.Context(), method, r.RemoteAddr)
}

// Refused counts a call that was refused for another reason. It returns false if the host
// has had too many of them, so that not each is logged.
func (l *Limits) Refused(address string) bool {
	if l == nil {
		return true
	}
	host := auth.HostOf(address)
	if l.refused.Take(host) > 0 {
		l.tell(limitRefused, "", host)
		return false
	}
	return true
}

// admit counts a call against the limits of its caller.
func (l *Limits) admit(ctx context.Context, method, address string) error {
	caller, known := auth.CallerOf(ctx)
	host := auth.HostOf(address)
	switch {
	case isManager(ctx):
		// Managers call each other on behalf of users, whose calls were counted.
		return nil
	case known:
		return l.admitClient(method, caller.Identity.String())
	case l.unauthenticated == nil || strings.HasPrefix(method, "/"+healthpb.Health_ServiceDesc.ServiceName+"/"):
		// Health checks cost little, so the strict limits do not apply.
		return l.admitClient(method, host)
	}
	return l.admitUnauthenticated(method, host)
}

func (l *Limits) admitClient(method, client string) error {
	if wait := l.clients.Take(client); wait > 0 {
		return l.refuse(limitClient, method, client, auth.TooMany(wait,
			"%s calls too often: more than %v times a second, and %d at once (--client-rate, --client-burst of apid)", client, l.settings.ClientRate, l.settings.ClientBurst))
	}
	return nil
}

func (l *Limits) admitUnauthenticated(method, host string) error {
	if wait := l.unauthenticated.Take(host); wait > 0 {
		return l.refuse(limitUnauthenticated, method, host, l.unauthenticatedError(wait, "%s calls too often without an identity", host))
	}
	if wait := l.allUnauthenticated.Take(""); wait > 0 {
		return l.refuse(limitAllUnauthenticated, method, host, l.unauthenticatedError(wait, "too many call without an identity"))
	}
	return nil
}

// refuse counts and logs a call over a limit, and returns err.
func (l *Limits) refuse(limit, method, client string, err error) error {
	l.tell(limit, method, client)
	return err
}

func (l *Limits) tell(limit, method, client string) {
	l.exceeded.WithLabelValues(limit).Inc()
	l.log.Warn("client exceeds a limit", zap.String("limit", limit), zap.String("client", client), zap.String("call", method))
}

func (l *Limits) unauthenticatedError(wait time.Duration, format string, a ...any) error {
	return auth.TooMany(wait, format+": more than %v times a second from one host, and %d at once (--unauthenticated-rate, --unauthenticated-burst of apid)",
		append(a, l.settings.UnauthenticatedRate, l.settings.UnauthenticatedBurst)...)
}

func addressIn(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}
