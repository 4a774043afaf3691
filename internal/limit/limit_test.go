package limit_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	cav1 "github.com/musterhq/muster/api/muster/ca/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/limit"
)

// server requires an identity, or is open, and admits callers whose
// token is their name.
type server struct {
	t        *testing.T
	limits   *limit.Limits
	guard    *auth.Guard
	grpc     *grpc.Server
	registry *prometheus.Registry
	// refusals are what the guard logs.
	refusals *observer.ObservedLogs
}

func newServer(t *testing.T, closed bool, s limit.Settings) *server {
	t.Helper()
	h := &server{t: t, registry: prometheus.NewRegistry()}
	if closed {
		core, logs := observer.New(zap.WarnLevel)
		h.refusals = logs
		guard, err := auth.New(func() string { return "d" }, zap.New(core), h.registry)
		if err != nil {
			t.Fatal(err)
		}
		guard.AcceptTokens(func(_ context.Context, token string) (auth.Identity, error) {
			if token == "wrong" {
				return auth.Identity{}, errors.New("unknown")
			}
			return auth.Identity{Role: authv1.Role_VIEWER, Name: token}, nil
		})
		h.guard = guard
	}
	limits, err := limit.New(s, closed, zaptest.NewLogger(t), h.registry)
	if err != nil {
		t.Fatal(err)
	}
	h.limits = limits
	h.guard.OnRefused(limits.Refused)
	h.grpc, _ = daemon.NewServer(insecure.NewCredentials(), append(h.guard.ServerOptions(), limits.ServerOptions()...)...)
	musterv1.RegisterControlServiceServer(h.grpc, &musterv1.UnimplementedControlServiceServer{})
	cav1.RegisterAuthorityServiceServer(h.grpc, &cav1.UnimplementedAuthorityServiceServer{})
	if err := h.guard.RegisterRules(h.grpc.GetServiceInfo()); err != nil {
		t.Fatal(err)
	}
	return h
}

// rest makes a REST call of a user, from an address.
func (h *server) rest(method, token, address string) error {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.RemoteAddr = address
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	ctx, err := h.guard.AdmitREST(r, method)
	if err != nil {
		return err
	}
	return h.limits.REST(r.WithContext(ctx), method)
}

// admitted is how many of n calls in a row are, the refused ones being refused for
// their number, with a time to wait.
func admitted(t *testing.T, n int, call func(i int) error) int {
	t.Helper()
	passed := 0
	for i := range n {
		err := call(i)
		if status.Code(err) != codes.ResourceExhausted {
			passed++
			continue
		}
		if again := retryAfter(err); again <= 0 || again > time.Second {
			t.Fatalf("%v says to try again in %v", err, again)
		}
	}
	return passed
}

func retryAfter(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if again, ok := d.(*errdetails.RetryInfo); ok {
			return again.RetryDelay.AsDuration()
		}
	}
	return 0
}

func TestLimits(t *testing.T) {
	const (
		list = musterv1.ControlService_ListServices_FullMethodName
		join = cav1.AuthorityService_Join_FullMethodName
		ask  = healthpb.Health_Check_FullMethodName
	)
	small := limit.Settings{ClientRate: 10, ClientBurst: 20, UnauthenticatedRate: 2, UnauthenticatedBurst: 5}
	smaller := limit.Settings{ClientRate: 10, ClientBurst: 20, UnauthenticatedRate: 1, UnauthenticatedBurst: 3}
	unbounded := limit.Settings{ClientBurst: 1, UnauthenticatedBurst: 1}
	same := func(s string) func(int) string { return func(int) string { return s } }
	each := func(format string) func(int) string { return func(i int) string { return fmt.Sprintf(format, i) } }
	for name, tt := range map[string]struct {
		open            bool
		settings        limit.Settings
		method          string
		token, address  func(int) string
		want, wantLater int
		exceeded        string
	}{
		"one client":                  {settings: small, method: list, token: same("vera"), address: each("10.0.0.%d:1"), want: 20, wantLater: 10, exceeded: "client"},
		"many clients":                {settings: small, method: list, token: each("vera%d"), address: same("10.0.0.1:1"), want: 200, wantLater: 200},
		"joins of one host":           {settings: small, method: join, token: same(""), address: each("10.0.0.1:%d"), want: 5, wantLater: 2, exceeded: "unauthenticated"},
		"joins of a network":          {settings: small, method: join, token: same(""), address: each("[fd00::%x]:1"), want: 5, wantLater: 2, exceeded: "unauthenticated"},
		"joins of many hosts":         {settings: smaller, method: join, token: same(""), address: each("10.0.0.%d:1"), want: 120, wantLater: 40, exceeded: "all_unauthenticated"},
		"health":                      {settings: small, method: ask, token: same(""), address: each("10.0.0.1:%d"), want: 20, wantLater: 10, exceeded: "client"},
		"in the clear, by the host":   {open: true, settings: small, method: list, token: same(""), address: each("10.0.0.1:%d"), want: 20, wantLater: 10, exceeded: "client"},
		"in the clear, joins":         {open: true, settings: small, method: join, token: same(""), address: each("10.0.0.%d:1"), want: 200, wantLater: 200},
		"in the clear, by default":    {open: true, settings: limit.DefaultSettings(), method: list, token: same(""), address: same("10.0.0.1:1"), want: 200, wantLater: 200},
		"by default, one command":     {settings: limit.DefaultSettings(), method: list, token: same("vera"), address: same("10.0.0.1:1"), want: 200, wantLater: 200},
		"turned off, one client":      {settings: unbounded, method: list, token: same("vera"), address: same("10.0.0.1:1"), want: 200, wantLater: 200},
		"turned off, joins":           {settings: unbounded, method: join, token: same(""), address: same("10.0.0.1:1"), want: 200, wantLater: 200},
		"turned off, wrong tokens":    {settings: unbounded, method: list, token: same("wrong"), address: same("10.0.0.1:1"), want: 200, wantLater: 200},
		"an address that is not one":  {settings: small, method: join, token: same(""), address: same("bufconn"), want: 5, wantLater: 2, exceeded: "unauthenticated"},
		"v4 in v6 is not one network": {settings: smaller, method: join, token: same(""), address: each("[::ffff:10.0.0.%d]:1"), want: 120, wantLater: 40, exceeded: "all_unauthenticated"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newServer(t, !tt.open, tt.settings)
				call := func(i int) error { return h.rest(tt.method, tt.token(i), tt.address(i)) }
				if got := admitted(t, 200, call); got != tt.want {
					t.Errorf("%d of 200 calls were admitted, want %d", got, tt.want)
				}
				time.Sleep(time.Second)
				if got := admitted(t, 200, call); got != tt.wantLater {
					t.Errorf("%d of 200 calls were admitted a second later, want %d", got, tt.wantLater)
				}
				want := 400 - tt.want - tt.wantLater
				if got := h.exceeded(tt.exceeded); got != want {
					t.Errorf("%d refusals were counted as %q, want %d", got, tt.exceeded, want)
				}
			})
		})
	}
}

// exceeded reads how many calls a limit has refused.
func (h *server) exceeded(limit string) int {
	h.t.Helper()
	families, err := h.registry.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == "muster_rate_exceeded_total" && m.Label[0].GetValue() == limit {
				return int(m.Counter.GetValue())
			}
		}
	}
	if limit != "" {
		h.t.Errorf("there is no metric of limit %q", limit)
	}
	return 0
}

// TestRepeatedRefusalsAreCountedAndNotLogged: the client still learns the reason.
func TestRepeatedRefusalsAreCountedAndNotLogged(t *testing.T) {
	for name, token := range map[string]string{"a wrong token": "wrong", "no token": ""} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newServer(t, true, limit.Settings{UnauthenticatedRate: 2, UnauthenticatedBurst: 5, ClientBurst: 1})
				for i := range 200 {
					err := h.rest(musterv1.ControlService_ListServices_FullMethodName, token, fmt.Sprintf("10.0.0.1:%d", i))
					if status.Code(err) != codes.Unauthenticated {
						t.Fatalf("call %d: %v", i, err)
					}
				}
				if got := h.exceeded("refused"); got != 195 {
					t.Errorf("%d refusals were too many, want 195", got)
				}
				if got := h.refusals.FilterMessage("call is refused").Len(); got != 5 {
					t.Errorf("%d refusals were logged, want 5", got)
				}
			})
		})
	}
}

// TestARightTokenIsTakenBesideWrongOnes: a user who shares an address with an attacker,
// such as a proxy's, is not shut out.
func TestARightTokenIsTakenBesideWrongOnes(t *testing.T) {
	h := newServer(t, true, limit.Settings{UnauthenticatedRate: 1, UnauthenticatedBurst: 1, ClientBurst: 1})
	admitted(t, 10, func(int) error {
		return h.rest(musterv1.ControlService_ListServices_FullMethodName, "wrong", "10.0.0.1:1")
	})
	if err := h.rest(musterv1.ControlService_ListServices_FullMethodName, "vera", "10.0.0.1:1"); err != nil {
		t.Error(err)
	}
}

// TestGRPC bounds calls of both kinds over a connection, as one.
func TestGRPC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newServer(t, true, limit.Settings{ClientRate: 1, ClientBurst: 10, UnauthenticatedRate: 1, UnauthenticatedBurst: 10})
		l := bufconn.Listen(1 << 20)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- daemon.ServeGRPC(ctx, h.grpc, l, time.Second) }()
		conn, err := grpc.NewClient("passthrough:///b", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		client := musterv1.NewControlServiceClient(conn)
		as := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer vera")
		got := admitted(t, 30, func(i int) error {
			if i%2 == 0 {
				_, err := client.ListServices(as, &musterv1.ListServicesRequest{})
				return err
			}
			watch, err := client.Watch(as, &musterv1.WatchRequest{})
			if err == nil {
				_, err = watch.Recv()
			}
			return err
		})
		if got != 10 {
			t.Errorf("%d calls were admitted, want 10", got)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestSettingsNameTheFlag(t *testing.T) {
	good := limit.DefaultSettings()
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	bad := limit.Settings{ClientRate: -2, UnauthenticatedRate: -1}
	err := bad.Validate()
	for _, flag := range []string{"--client-rate", "--client-burst", "--unauthenticated-rate", "--unauthenticated-burst"} {
		if err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%v does not name %s", err, flag)
		}
	}
	if _, err := limit.New(bad, true, zaptest.NewLogger(t), prometheus.NewRegistry()); err == nil {
		t.Error("limits are made of nonsense")
	}
}
