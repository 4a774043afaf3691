package auth

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
)

// reader is the server's side of a stream; it accepts messages until it stalls.
type reader struct {
	grpc.ServerStream
	stalls atomic.Bool
	over   chan struct{}
}

func (r *reader) SendMsg(any) error {
	if r.stalls.Load() {
		<-r.over
	}
	return nil
}

// TestStreamsEnd removes the token of who has a stream open, and has one not read
// from.
func TestStreamsEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		stalls, removed bool
		want            codes.Code
		within          time.Duration
	}{
		"the token is removed": {removed: true, want: codes.Unauthenticated, within: recheck},
		"no reader":            {stalls: true, want: codes.DeadlineExceeded, within: sendTimeout + 2*time.Second},
		"the token of who does not read is removed": {stalls: true, removed: true, want: codes.Unauthenticated, within: recheck + lastWords},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, err := New(func() string { return "d" }, zaptest.NewLogger(t), prometheus.NewRegistry())
				if err != nil {
					t.Fatal(err)
				}
				var removed atomic.Bool
				id := Identity{Role: authv1.Role_VIEWER, Name: "vera"}
				g.AcceptTokens(func(context.Context, string) (Identity, error) {
					if removed.Load() {
						return Identity{}, errors.New("unknown")
					}
					return id, nil
				})
				// A stranger behind the same proxy has been refused too often.
				g.OnRefused(func(string) bool { return false })
				ctx := context.WithValue(t.Context(), callerKey{}, Caller{Identity: id})
				stream := &reader{over: make(chan struct{})}
				ended := make(chan error, 1)
				go func() {
					ended <- g.revalidate(stream, ctx, "/s/Watch", presented{authorization: []string{"Bearer x"}}, func(s grpc.ServerStream) error {
						for s.Context().Err() == nil {
							if err := s.SendMsg(nil); err != nil {
								return err
							}
							time.Sleep(100 * time.Millisecond)
						}
						return nil
					})
				}()
				time.Sleep(12 * time.Second)
				select {
				case err := <-ended:
					t.Fatalf("a good stream ended: %v", err)
				default:
				}
				stream.stalls.Store(tt.stalls)
				removed.Store(tt.removed)
				began := time.Now()
				if err := <-ended; status.Code(err) != tt.want {
					t.Errorf("it ended with %v, want %v", err, tt.want)
				}
				if took := time.Since(began); took > tt.within {
					t.Errorf("it took %v, at most %v are allowed", took, tt.within)
				}
				close(stream.over)
				// The handler sees that its stream has ended.
				time.Sleep(time.Second)
			})
		})
	}
}
