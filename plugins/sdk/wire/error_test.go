package wire_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// seen is what a worker makes of an error.
type seen struct {
	Code      codes.Code
	Text      string
	Temporary bool
	Delay     time.Duration
	Blame     wire.Blame
	Field     string
}

func look(t *testing.T, err error) seen {
	t.Helper()
	var e *wire.Error
	if !errors.As(wire.FromStatus(err), &e) {
		t.Fatalf("FromStatus(%v) is no *wire.Error", err)
	}
	return seen{Code: e.Code, Text: e.Error(), Temporary: e.Temporary, Delay: e.Delay(), Blame: e.Blame, Field: e.Field}
}

// failing is an executor whose Prepare fails in one way.
type failing struct {
	executorv1.UnimplementedExecutorServiceServer
	err error
}

func (f *failing) Prepare(context.Context, *executorv1.PrepareRequest) (*executorv1.PrepareResponse, error) {
	return nil, wire.ToStatus(f.err, false)
}

// callPrepare brings an executor's error over a real gRPC connection.
func callPrepare(t *testing.T, err error) error {
	t.Helper()
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	executorv1.RegisterExecutorServiceServer(server, &failing{err: err})
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	conn, dialErr := grpc.NewClient("passthrough:///executor",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if dialErr != nil {
		t.Fatal(dialErr)
	}
	_, got := executorv1.NewExecutorServiceClient(conn).Prepare(t.Context(), &executorv1.PrepareRequest{})
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	server.Stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	return got
}

func TestErrorsKeepTheirMeaningOverTheWire(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err  error
		want seen
	}{
		"temporary": {
			&wire.Error{Code: codes.Unavailable, Temporary: true, RetryAfter: 3 * time.Second, Err: errors.New("engine away")},
			seen{Code: codes.Unavailable, Text: "engine away", Temporary: true, Delay: 3 * time.Second},
		},
		"wrapped": {
			fmt.Errorf("create container: %w", &wire.Error{Code: codes.InvalidArgument, Blame: wire.BlameSpec, Field: "mounts[0].source", Err: errors.New("no such path")}),
			seen{Code: codes.InvalidArgument, Text: "create container: no such path", Delay: time.Second, Blame: wire.BlameSpec, Field: "mounts[0].source"},
		},
		"node": {
			&wire.Error{Code: codes.FailedPrecondition, Blame: wire.BlameNode, Err: errors.New("disk full")},
			seen{Code: codes.FailedPrecondition, Text: "disk full", Delay: time.Second, Blame: wire.BlameNode},
		},
		"not UTF-8": {
			&wire.Error{Code: codes.NotFound, Blame: wire.BlameSpec, Field: "mounts[\xff]", Err: errors.New("no file \xff")},
			seen{Code: codes.NotFound, Text: "no file \uFFFD", Delay: time.Second, Blame: wire.BlameSpec, Field: "mounts[\uFFFD]"},
		},
		"no code":  {&wire.Error{Err: errors.New("x")}, seen{Code: codes.Unknown, Text: "x", Delay: time.Second}},
		"no cause": {&wire.Error{Code: codes.NotFound}, seen{Code: codes.NotFound, Text: "NotFound", Delay: time.Second}},
		"plain":    {errors.New("exec format error"), seen{Code: codes.Unknown, Text: "exec format error", Delay: time.Second}},
		"canceled": {fmt.Errorf("pull: %w", context.Canceled), seen{Code: codes.Canceled, Text: "pull: context canceled", Temporary: true, Delay: time.Second}},
		"deadline": {context.DeadlineExceeded, seen{Code: codes.DeadlineExceeded, Text: "context deadline exceeded", Temporary: true, Delay: time.Second}},
		"status":   {status.Error(codes.NotFound, "unknown task"), seen{Code: codes.NotFound, Text: "unknown task", Delay: time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(test.want, look(t, callPrepare(t, test.err))); diff != "" {
				t.Errorf("error changed on its way (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAnErrorWithoutDetailIsJudgedByItsCode(t *testing.T) {
	t.Parallel()
	fatal := map[codes.Code]bool{
		codes.InvalidArgument: true, codes.FailedPrecondition: true, codes.Unimplemented: true, codes.NotFound: true,
	}
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		if got, want := look(t, status.Error(code, "x")).Temporary, !fatal[code]; got != want {
			t.Errorf("temporary of %s = %t, want %t", code, got, want)
		}
	}
	if got := look(t, context.Canceled); got.Code != codes.Canceled || !got.Temporary {
		t.Errorf("a context's end = %+v, want a temporary CANCELLED", got)
	}
}

func TestNoErrorStaysNoError(t *testing.T) {
	t.Parallel()
	if err := wire.ToStatus(nil, true); err != nil {
		t.Errorf("ToStatus(nil) = %v", err)
	}
	if err := wire.FromStatus(nil); err != nil {
		t.Errorf("FromStatus(nil) = %v", err)
	}
}

func TestANegativeRetryIsNone(t *testing.T) {
	t.Parallel()
	st, err := status.New(codes.Unavailable, "x").WithDetails(&executorv1.ExecutorError{Temporary: true, RetryAfter: durationpb.New(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if got := look(t, st.Err()).Delay; got != time.Second {
		t.Errorf("delay = %s, want 1s", got)
	}
}

func TestAnyErrorSurvivesTheRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		in := &wire.Error{
			Code:       codes.Code(rapid.Uint32Range(1, 16).Draw(r, "code")),
			Temporary:  rapid.Bool().Draw(r, "temporary"),
			RetryAfter: time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(r, "retry")),
			Blame:      wire.Blame(rapid.Int32Range(0, 2).Draw(r, "blame")),
			Field:      rapid.String().Draw(r, "field"),
			Err:        errors.New(rapid.String().Draw(r, "text")),
		}
		want := seen{Code: in.Code, Text: in.Error(), Temporary: in.Temporary, Delay: in.Delay(), Blame: in.Blame, Field: in.Field}
		if diff := cmp.Diff(want, look(t, wire.ToStatus(in, false))); diff != "" {
			r.Errorf("error changed on its way (-want +got):\n%s", diff)
		}
	})
}
