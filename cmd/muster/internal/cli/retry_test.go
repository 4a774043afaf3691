package cli

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/limit"
)

// busy answers what it must.
type busy struct {
	musterv1.UnimplementedControlServiceServer
	calls int
}

func (b *busy) GetCluster(context.Context, *musterv1.GetClusterRequest) (*musterv1.GetClusterResponse, error) {
	b.calls++
	return &musterv1.GetClusterResponse{}, nil
}

func (b *busy) Watch(_ *musterv1.WatchRequest, s grpc.ServerStreamingServer[musterv1.WatchResponse]) error {
	b.calls++
	return s.Send(&musterv1.WatchResponse{})
}

// TestRefusedCallsAreRepeated calls a server that allows so and so many calls.
func TestRefusedCallsAreRepeated(t *testing.T) {
	unary := func(ctx context.Context, c musterv1.ControlServiceClient) error {
		_, err := c.GetCluster(ctx, &musterv1.GetClusterRequest{})
		return err
	}
	stream := func(ctx context.Context, c musterv1.ControlServiceClient) error {
		watch, err := c.Watch(ctx, &musterv1.WatchRequest{})
		if err == nil {
			_, err = watch.Recv()
		}
		return err
	}
	for name, tt := range map[string]struct {
		call           func(context.Context, musterv1.ControlServiceClient) error
		perSecond      float64
		timeout        time.Duration
		n, refused     int
		least, longest time.Duration
	}{
		"calls wait for their turn":           {call: unary, perSecond: 2, timeout: 30 * time.Second, n: 9, least: 4 * time.Second, longest: 10 * time.Second},
		"streams wait for their turn":         {call: stream, perSecond: 2, timeout: 30 * time.Second, n: 9, least: 4 * time.Second, longest: 10 * time.Second},
		"not longer than there is time":       {call: unary, perSecond: 0.01, timeout: 30 * time.Second, n: 2, refused: 1, longest: time.Second},
		"a stream, not longer than there is":  {call: stream, perSecond: 0.01, timeout: 30 * time.Second, n: 2, refused: 1, longest: time.Second},
		"a server that has time for everyone": {call: unary, perSecond: 0, timeout: time.Second, n: 100, longest: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				limits, err := limit.New(limit.Settings{ClientRate: tt.perSecond, ClientBurst: 1, UnauthenticatedBurst: 1}, false, zaptest.NewLogger(t), prometheus.NewRegistry())
				if err != nil {
					t.Fatal(err)
				}
				server, _ := daemon.NewServer(insecure.NewCredentials(), limits.ServerOptions()...)
				b := &busy{}
				musterv1.RegisterControlServiceServer(server, b)
				l := bufconn.Listen(1 << 20)
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- daemon.ServeGRPC(ctx, server, l, time.Second) }()
				conn, err := grpc.NewClient("passthrough:///b", append(RetryRefused(), grpc.WithTransportCredentials(insecure.NewCredentials()),
					grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))...)
				if err != nil {
					t.Fatal(err)
				}
				client, began, refused := musterv1.NewControlServiceClient(conn), time.Now(), 0
				for range tt.n {
					ctx, cancel := context.WithTimeout(t.Context(), tt.timeout)
					err := tt.call(ctx, client)
					switch {
					case status.Code(err) == codes.ResourceExhausted:
						refused++
					case err != nil:
						t.Error(err)
					}
					cancel()
				}
				if took := time.Since(began); took < tt.least || took > tt.longest {
					t.Errorf("%d calls took %v, want %v to %v", tt.n, took, tt.least, tt.longest)
				}
				if refused != tt.refused || b.calls != tt.n-tt.refused {
					t.Errorf("%d of %d calls were refused, want %d; %d were served", refused, tt.n, tt.refused, b.calls)
				}
				if err := conn.Close(); err != nil {
					t.Error(err)
				}
				stop()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
