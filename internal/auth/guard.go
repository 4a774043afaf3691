// Package auth decides who may call what. It owns identities: how certificates
// state them, and how the tokens of people are recognised. The rules are in the
// contract; a Guard enforces them on every server of a daemon, and logs and
// counts what it refuses.
package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
)

// Tokens finds the identity of a token. The caller gets its error if that is a gRPC
// status.
type Tokens func(ctx context.Context, token string) (Identity, error)

// Refused counts a refused call of a peer. It reports whether the call should be logged,
// which is false if the peer had too many.
type Refused func(address string) (tell bool)

// Guard enforces the rules on the servers of one daemon. A nil Guard admits
// every caller: that of a daemon that serves in the clear.
type Guard struct {
	domain func() string
	log    *zap.Logger
	// calls and handshakes count refusals.
	calls       *prometheus.CounterVec
	handshakes  prometheus.Counter
	registering sync.Mutex
	rules       atomic.Pointer[map[string]*authv1.Rule]
	tokens      atomic.Pointer[Tokens]
	refused     atomic.Pointer[Refused]
}

// Reasons of refusals, in metrics and logs.
const (
	reasonUnknown   = "unauthenticated"
	reasonForbidden = "forbidden"
)

// New returns a guard. Domain returns the trust domain that peers must belong to: that of
// the daemon's own certificate.
func New(domain func() string, log *zap.Logger, metrics prometheus.Registerer) (*Guard, error) {
	g := &Guard{
		domain: domain,
		// Callers without credentials decide how often calls are refused, and must not fill
		// a disk with log lines.
		log: log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
			return zapcore.NewSamplerWithOptions(c, time.Second, 100, 1000)
		})),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_auth_refused_total", Help: "Calls that were refused, by method and reason.",
		}, []string{"method", "reason"}),
		handshakes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_auth_handshakes_refused_total", Help: "Connections that were refused: in the clear, or with a certificate that is not trusted.",
		}),
	}
	for _, c := range []prometheus.Collector{g.calls, g.handshakes} {
		if err := metrics.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of refusals: %w", err)
		}
	}
	return g, nil
}

// RegisterRules adds the rules of the services of a server. It fails if a method
// has no rule. Calls that arrive earlier are refused.
func (g *Guard) RegisterRules(services map[string]grpc.ServiceInfo) error {
	rules, err := rulesOf(services)
	if err != nil {
		return err
	}
	if g == nil {
		return nil
	}
	g.registering.Lock()
	defer g.registering.Unlock()
	if known := g.rules.Load(); known != nil {
		maps.Copy(rules, *known)
	}
	g.rules.Store(&rules)
	return nil
}

// AcceptTokens makes the guard accept tokens in addition to certificates.
func (g *Guard) AcceptTokens(t Tokens) {
	if g != nil {
		g.tokens.Store(&t)
	}
}

// OnRefused sets the function that counts refused calls.
func (g *Guard) OnRefused(f Refused) {
	if g != nil {
		g.refused.Store(&f)
	}
}

// presented are the credentials of one call.
type presented struct {
	address       string
	tls           *tls.ConnectionState
	authorization []string
	// certificateOnly is true if the server accepts no tokens.
	certificateOnly bool
}

// Caller is the authenticated caller of a handler.
type Caller struct {
	Identity
	// Certificate is nil for callers with a token.
	Certificate *x509.Certificate
}

type callerKey struct{}

// CallerOf returns the caller. It returns false on a server that admits every caller, and
// for unauthenticated calls of methods that anyone may call.
func CallerOf(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// admitCall admits or refuses a call of gRPC.
func (g *Guard) admitCall(ctx context.Context, method string, p presented) (context.Context, error) {
	rules := g.rules.Load()
	if rules == nil {
		return nil, status.Error(codes.Unavailable, "the daemon is starting")
	}
	rule, ok := (*rules)[method]
	if !ok {
		return nil, status.Errorf(codes.Unimplemented, "there is no method %s", method)
	}
	return g.admit(ctx, method, rule, p)
}

// admit returns the call's context with the caller in it, or why it is refused.
func (g *Guard) admit(ctx context.Context, what string, rule *authv1.Rule, p presented) (context.Context, error) {
	caller, known, err := g.identify(ctx, p)
	switch {
	case err != nil && !rule.Anyone:
		return nil, g.refuse(what, reasonUnknown, p, caller, err)
	case !known && !rule.Anyone:
		return nil, g.refuse(what, reasonUnknown, p, caller, status.Errorf(codes.Unauthenticated, "%s needs the role %s: %s", short(what), needs(rule), g.how(p)))
	case known && !allows(rule, caller.Role):
		return nil, g.refuse(what, reasonForbidden, p, caller,
			status.Errorf(codes.PermissionDenied, "%s needs the role %s, and you are %s", short(what), needs(rule), caller.Identity))
	case !known:
		return ctx, nil
	}
	return context.WithValue(ctx, callerKey{}, caller), nil
}

// how says how a caller without an identity can authenticate.
func (g *Guard) how(p presented) string {
	if p.certificateOnly || g.tokens.Load() == nil {
		return "connect with a client certificate of the cluster"
	}
	return "send a token (muster login, MUSTER_TOKEN, or the header Authorization: Bearer ...), or connect with a client certificate of the cluster"
}

// identify finds a caller's identity. A token takes precedence over a certificate,
// because the client sends it on purpose.
func (g *Guard) identify(ctx context.Context, p presented) (Caller, bool, error) {
	if len(p.authorization) > 0 {
		id, err := g.byToken(ctx, p.authorization)
		return Caller{Identity: id}, err == nil, err
	}
	if p.tls == nil || len(p.tls.VerifiedChains) == 0 {
		return Caller{}, false, nil
	}
	c := p.tls.PeerCertificates[0]
	id, err := FromCertificate(c)
	if err != nil {
		return Caller{Certificate: c}, false, status.Error(codes.Unauthenticated, err.Error())
	}
	if own := g.domain(); id.Domain != own {
		return Caller{Certificate: c}, false, status.Errorf(codes.Unauthenticated, "the certificate is of trust domain %q, and this is %q", id.Domain, own)
	}
	// A handshake looks at this, but connections stay open. Those of daemons continue
	// with the certificate that they were made with after their owner has renewed it.
	if IsPerson(id.Role) && time.Now().After(c.NotAfter) {
		return Caller{Certificate: c}, false, status.Errorf(codes.Unauthenticated, "the certificate has ended at %s", c.NotAfter.UTC().Format(time.RFC3339))
	}
	return Caller{Identity: id, Certificate: c}, true, nil
}

func (g *Guard) byToken(ctx context.Context, authorization []string) (Identity, error) {
	tokens := g.tokens.Load()
	if tokens == nil {
		return Identity{}, status.Error(codes.Unauthenticated, "this daemon takes no tokens: "+g.how(presented{}))
	}
	if len(authorization) != 1 {
		return Identity{}, status.Error(codes.Unauthenticated, "there is more than one authorization")
	}
	scheme, token, ok := strings.Cut(authorization[0], " ")
	if !ok || !strings.EqualFold(scheme, "bearer") {
		return Identity{}, status.Error(codes.Unauthenticated, `the authorization is not "Bearer <token>"`)
	}
	id, err := (*tokens)(ctx, strings.TrimSpace(token))
	var known interface{ GRPCStatus() *status.Status }
	switch {
	case err == nil:
		return id, nil
	case errors.As(err, &known):
		return Identity{}, err
	}
	return Identity{}, status.Error(codes.Unauthenticated, "the token is not known: it is wrong, has expired or was removed")
}

// refuse counts and logs a refused call, and returns the error for the caller.
func (g *Guard) refuse(what, reason string, p presented, caller Caller, err error) error {
	g.calls.WithLabelValues(what, reason).Inc()
	// The error stays the same if the host had too many refused calls. Other clients may
	// share the address, and need the reason.
	if f := g.refused.Load(); f != nil && !(*f)(p.address) {
		return err
	}
	fields := []zap.Field{zap.String("call", what), zap.String("reason", reason), zap.String("peer", p.address), zap.Error(err)}
	if caller.Role != 0 {
		fields = append(fields, zap.Stringer("identity", caller.Identity))
	}
	if c := caller.Certificate; c != nil {
		fields = append(fields, zap.String("serial", c.SerialNumber.Text(16)), zap.String("subject", c.Subject.String()))
	}
	g.log.Warn("call is refused", fields...)
	return err
}

// Refuse refuses a call for a handler whose own check is stricter than the method's rule.
func (g *Guard) Refuse(ctx context.Context, method string, err error) error {
	if g == nil {
		return err
	}
	caller, _ := CallerOf(ctx)
	return g.refuse(method, reasonForbidden, presentedIn(ctx), caller, err)
}

// short is a method's own name.
func short(what string) string { return what[strings.LastIndexByte(what, '/')+1:] }
