package daemon_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/daemon"
)

// serveUnauthenticated serves those who have no certificate, of whom some have a token. It
// cannot tell whose one is while it loads.
func serveUnauthenticated(t *testing.T) *bufconn.Listener {
	t.Helper()
	guard, err := auth.New(func() string { return "d" }, zaptest.NewLogger(t), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	loaded := time.Now().Add(loading)
	guard.AcceptTokens(func(ctx context.Context, token string) (auth.Identity, error) {
		if wait := time.Until(loaded); wait > 0 && ctx.Err() == nil {
			time.Sleep(wait)
		}
		switch {
		case time.Now().Before(loaded):
			return auth.Identity{}, status.Error(codes.Unavailable, "loading")
		case token != "right":
			return auth.Identity{}, errors.New("unknown")
		}
		return auth.Identity{Role: authv1.Role_VIEWER, Name: "vera"}, nil
	})
	server, _ := daemon.NewServer(insecure.NewCredentials(), append(guard.ServerOptions(), guard.UnauthenticatedOptions()...)...)
	musterv1.RegisterControlServiceServer(server, &musterv1.UnimplementedControlServiceServer{})
	if err := guard.RegisterRules(server.GetServiceInfo()); err != nil {
		t.Fatal(err)
	}
	return serveInMemory(t, server)
}

const (
	loading = time.Second
	list    = musterv1.ControlService_ListServices_FullMethodName
	check   = healthpb.Health_Check_FullMethodName
)

func bearer(token string) hpack.HeaderField {
	return hpack.HeaderField{Name: "authorization", Value: "Bearer " + token}
}

// TestUnauthenticatedCallIsRefusedBeforeItsMessage: a caller without permission is refused before it has sent
// what it announces.
func TestUnauthenticatedCallIsRefusedBeforeItsMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := attack(t, serveUnauthenticated(t))
		time.Sleep(2 * loading)
		began := time.Now()
		a.begin(1, list)
		a.until("refusal of the caller", trailer(1, codes.Unauthenticated))
		a.begin(3, list, bearer("wrong"))
		a.until("refusal of a wrong token", trailer(3, codes.Unauthenticated))
		a.begin(5, "/nowhere/Nothing")
		a.until("refusal of no method", trailer(5, codes.Unimplemented))
		if took := time.Since(began); took > 0 {
			t.Errorf("it took %v", took)
		}
		// A known caller may be slow.
		a.begin(7, list, bearer("right"))
		time.Sleep(25 * time.Second)
		a.must(a.framer.WriteData(7, true, message(false, nil)))
		a.until("answer", trailer(7, codes.Unimplemented))
	})
}

// TestATokenIsWaitedFor: a daemon that starts refuses no caller that it will know.
func TestATokenIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := serveUnauthenticated(t)
		a, b := attack(t, l), attack(t, l)
		a.call(1, list, message(false, nil), bearer("right"))
		b.call(1, list, message(false, nil), bearer("wrong"))
		a.until("answer", trailer(1, codes.Unimplemented))
		b.until("refusal", trailer(1, codes.Unauthenticated))
	})
}

// TestOpenUnauthenticatedCallsAreBounded: as many calls as one host may have, over several
// connections, none of which is ever complete.
func TestOpenUnauthenticatedCallsAreBounded(t *testing.T) {
	for name, begin := range map[string]func(a *attacker, stream uint32){
		"messages that do not come": func(a *attacker, stream uint32) {
			a.begin(stream, check)
			a.must(a.framer.WriteData(stream, false, []byte{0, 0, 0x3f, 0, 0, 'a'}))
		},
		"health that is watched": func(a *attacker, stream uint32) {
			a.call(stream, healthpb.Health_Watch_FullMethodName, message(false, nil))
		},
		"tokens that cannot be told yet": func(a *attacker, stream uint32) {
			a.begin(stream, list, bearer("right"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := serveUnauthenticated(t)
				a, b := attack(t, l), attack(t, l)
				const most = 32
				for i := range uint32(most / 2) {
					begin(a, 2*i+1)
					begin(b, 2*i+1)
				}
				synctest.Wait()
				b.call(most+1, check, message(false, nil))
				b.until("refusal of one call too many", trailer(most+1, codes.ResourceExhausted))
				// They end by themselves, or when who has made them ends them.
				switch name {
				case "tokens that cannot be told yet":
					for i := range uint32(most / 2) {
						a.must(a.framer.WriteRSTStream(2*i+1, http2.ErrCodeCancel))
					}
				case "health that is watched":
					a.until("end of what takes too long", trailer(1, codes.Canceled))
				default:
					a.until("end of what takes too long", trailer(1, codes.DeadlineExceeded))
				}
				synctest.Wait()
				a.call(most+3, check, message(false, nil))
				a.until("answer", trailer(most+3, codes.OK))
			})
		})
	}
}

// TestStreamsOfPeopleAreBounded opens more calls with a token than there may be.
func TestStreamsOfPeopleAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := attack(t, serveUnauthenticated(t))
		time.Sleep(2 * loading)
		const most = 250
		for i := range uint32(most + 1) {
			a.begin(2*i+1, list, bearer("right"))
		}
		a.until("refusal of one stream too many", reset(2*most+1, http2.ErrCodeRefusedStream))
	})
}
