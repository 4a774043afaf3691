package daemon_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/musterhq/muster/internal/daemon"
	testwait "github.com/musterhq/muster/test/kit/wait"
)

// TestDialerTakesWhoAnswers calls one of several replicas while they come and go.
func TestDialerTakesWhoAnswers(t *testing.T) {
	listen := func(address string) net.Listener {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	start := func(l net.Listener) (stop func()) {
		server, _ := daemon.NewServer(insecure.NewCredentials())
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- daemon.ServeGRPC(ctx, server, l, time.Second) }()
		return func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	one, two := listen("127.0.0.1:0"), listen("127.0.0.1:0")
	addresses := []string{one.Addr().String(), two.Addr().String()}
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	conn, err := daemon.Dialer(insecure.NewCredentials())(strings.Join(addresses, ","))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	answers := func() {
		t.Helper()
		testwait.Within(t, time.Minute, "one answers", func(ctx context.Context) error {
			_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
			return err
		})
	}
	stop := start(two)
	answers()
	stop()
	stop = start(listen(addresses[0]))
	answers()
	stop()
}
