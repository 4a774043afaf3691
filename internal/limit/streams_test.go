package limit_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/limit"
)

// stream opens a stream as REST does.
func (h *server) stream(method, token, address string) (release func(), err error) {
	h.t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.RemoteAddr = address
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	ctx, err := h.guard.AdmitREST(r, method)
	if err != nil {
		h.t.Fatal(err)
	}
	from, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.limits.Stream(peer.NewContext(ctx, &peer.Peer{Addr: from}), method)
}

func TestEachClientHasSoManyStreams(t *testing.T) {
	const (
		watch   = musterv1.ControlService_Watch_FullMethodName
		service = musterv1.ControlService_ServiceLogs_FullMethodName
		task    = musterv1.ControlService_TaskLogs_FullMethodName
	)
	bounds := limit.Settings{ClientBurst: 1, UnauthenticatedBurst: 1, ClientWatches: 5, ClientLogs: 3}
	for name, tt := range map[string]struct {
		open            bool
		settings        limit.Settings
		methods         []string
		token, address  string
		want            int
		exceeded, names string
	}{
		"watches":                  {settings: bounds, methods: []string{watch}, token: "vera", address: "10.0.0.%d:1", want: 5, exceeded: "client_watches", names: "viewer vera has 5 watches open, the most that one client may have at one apid: close one of them first, or ask an administrator to raise --client-watches"},
		"logs of both kinds":       {settings: bounds, methods: []string{service, task}, token: "vera", address: "10.0.0.%d:1", want: 3, exceeded: "client_logs", names: "viewer vera has 3 log streams open"},
		"of many clients":          {settings: bounds, methods: []string{task}, token: "vera%d", address: "10.0.0.1:%d", want: 20},
		"in the clear":             {open: true, settings: bounds, methods: []string{service}, address: "10.0.0.1:%d", want: 3, exceeded: "client_logs", names: "10.0.0.1 has 3 log streams open"},
		"in the clear, many":       {open: true, settings: bounds, methods: []string{watch}, address: "10.0.0.%d:1", want: 20},
		"without a limit":          {settings: limit.Settings{ClientBurst: 1, UnauthenticatedBurst: 1}, methods: []string{watch, task}, token: "vera", address: "10.0.0.%d:1", want: 20},
		"by default":               {settings: limit.DefaultSettings(), methods: []string{service}, token: "vera", address: "10.0.0.1:%d", want: 20},
		"kinds are for themselves": {settings: bounds, methods: []string{watch, watch, task}, token: "vera", address: "10.0.0.1:%d", want: 8, exceeded: "client_watches"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newServer(t, !tt.open, tt.settings)
			open := func() (releases []func(), refused int) {
				for i := range 20 {
					token := tt.token
					if strings.Contains(token, "%") {
						token = fmt.Sprintf(token, i)
					}
					release, err := h.stream(tt.methods[i%len(tt.methods)], token, fmt.Sprintf(tt.address, i))
					switch s := status.Convert(err); {
					case err == nil:
						releases = append(releases, release)
					case s.Code() != codes.ResourceExhausted || !strings.Contains(s.Message(), tt.names):
						t.Fatalf("a stream was refused with %v, want %q", err, tt.names)
					default:
						refused++
					}
				}
				return releases, refused
			}
			// A stream that has ended makes room for another.
			for range 2 {
				releases, refused := open()
				if len(releases) != tt.want || refused != 20-tt.want {
					t.Errorf("%d of 20 streams were admitted, want %d", len(releases), tt.want)
				}
				for _, release := range releases {
					release()
				}
			}
			if got := h.exceeded(tt.exceeded); tt.exceeded != "" && got == 0 {
				t.Errorf("no refusal was counted as %q", tt.exceeded)
			}
		})
	}
}

// TestStreamsOverGRPCAreBounded has a client open watches of health, which count as
// watches, and end them all before it opens as many again.
func TestStreamsOverGRPCAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newServer(t, true, limit.Settings{ClientBurst: 1, UnauthenticatedBurst: 1, ClientWatches: 4, ClientLogs: 1})
		l := bufconn.Listen(1 << 20)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- daemon.ServeGRPC(ctx, h.grpc, l, time.Second) }()
		conn, err := grpc.NewClient("passthrough:///b", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		watch := func(ctx context.Context) error {
			s, err := healthpb.NewHealthClient(conn).Watch(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer vera"), &healthpb.HealthCheckRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		}
		for round := range 2 {
			ctx, cancel := context.WithCancel(t.Context())
			for i := range 6 {
				want := codes.OK
				if i >= 4 {
					want = codes.ResourceExhausted
				}
				if err := watch(ctx); status.Code(err) != want {
					t.Errorf("round %d, watch %d: %v, want %v", round, i, err, want)
				}
			}
			cancel()
			synctest.Wait()
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
