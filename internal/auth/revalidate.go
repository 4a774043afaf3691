package auth

import (
	"context"
	"errors"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// recheck is how often the credentials of an open stream are checked again.
	recheck = 5 * time.Second
	// sendTimeout is how long a person's stream may take to accept one message.
	sendTimeout = 30 * time.Second
	// lastWords is how long a handler may take to see that its stream has ended.
	lastWords = time.Second
)

var (
	errNoLonger = status.Error(codes.Unauthenticated, "credentials are no longer valid: the token was revoked or has expired, or the certificate has expired")
	errStalled  = status.Error(codes.DeadlineExceeded, "the stream was not read from for too long")
)

// Ended returns why the guard has ended a stream; nil if it has not.
func Ended(ctx context.Context) error {
	if err := context.Cause(ctx); errors.Is(err, errNoLonger) || errors.Is(err, errStalled) {
		return err
	}
	return nil
}

// revalidate runs the handler of a stream. It ends the stream of a person when the
// credentials are no longer valid, or when the client does not read. Streams of daemons and
// workers are not checked again, because their certificates are renewed while streams stay.
func (g *Guard) revalidate(stream grpc.ServerStream, ctx context.Context, method string, p presented, handler func(grpc.ServerStream) error) error {
	caller, ok := CallerOf(ctx)
	if !ok || !IsPerson(caller.Role) {
		return handler(&admitted{stream, ctx})
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	ended := make(chan error, 1)
	// A handler that waits for a client that does not read ends only when this call
	// returns.
	go func() { ended <- handler(&held{admitted{stream, ctx}, end}) }()
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			if why := Ended(ctx); why != nil {
				return why
			}
			return err
		case <-tick.C:
			g.recheck(ctx, method, p, caller, end)
			continue
		case <-ctx.Done():
		}
		late := time.NewTimer(lastWords)
		defer late.Stop()
		var err error
		select {
		case err = <-ended:
		case <-late.C:
			err = status.FromContextError(ctx.Err()).Err()
		}
		if why := Ended(ctx); why != nil {
			return why
		}
		return err
	}
}

// HoldREST does so for a stream over HTTP, whose writes have deadlines of their
// own. The caller calls release when it has ended.
func (g *Guard) HoldREST(r *http.Request, method string) (ctx context.Context, release func()) {
	caller, ok := CallerOf(r.Context())
	if g == nil || !ok || !IsPerson(caller.Role) {
		return r.Context(), func() {}
	}
	ctx, end := context.WithCancelCause(r.Context())
	p, done := presentedBy(r), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(recheck)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				g.recheck(ctx, method, p, caller, end)
			}
		}
	}()
	return ctx, func() { end(nil); <-done }
}

// recheck ends a stream whose caller would be refused by now.
func (g *Guard) recheck(ctx context.Context, method string, p presented, caller Caller, end context.CancelCauseFunc) {
	if !g.good(ctx, p, caller) && ctx.Err() == nil {
		end(g.refuse(method, reasonUnknown, p, caller, errNoLonger))
	}
}

// good reports whether a caller would still be admitted with the same identity.
func (g *Guard) good(ctx context.Context, p presented, was Caller) bool {
	now, known, err := g.identify(ctx, p)
	if err != nil {
		// While that cannot be known, the last answer counts.
		code := status.Code(err)
		return code == codes.Unavailable || code == codes.DeadlineExceeded || code == codes.Canceled
	}
	return known && now.Identity == was.Identity
}

// held is a stream that ends when its client does not read.
type held struct {
	admitted
	end context.CancelCauseFunc
}

func (h *held) SendMsg(m any) error {
	stalled := time.AfterFunc(sendTimeout, func() { h.end(errStalled) })
	defer stalled.Stop()
	return h.admitted.SendMsg(m)
}
