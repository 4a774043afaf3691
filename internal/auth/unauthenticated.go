package auth

import (
	"context"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/musterhq/muster/internal/quota"
)

const (
	// unauthenticatedCalls is how many calls without an identity one host may have open.
	// The server receives the message of each before it can check it.
	unauthenticatedCalls = 32
	// unauthenticatedTime is how long such a call may last.
	unauthenticatedTime = 20 * time.Second
	// unauthenticatedStreams bounds the calls that are open on one connection to a server
	// that takes peers without a certificate.
	unauthenticatedStreams = 250
)

// UnauthenticatedOptions make a gRPC server that accepts peers without a certificate refuse
// their forbidden calls before it receives a message. Interceptors run after that.
func (g *Guard) UnauthenticatedOptions() []grpc.ServerOption {
	if g == nil {
		return nil
	}
	l := &unauthenticatedLimiter{guard: g, open: quota.NewOpen(unauthenticatedCalls)}
	return []grpc.ServerOption{grpc.InTapHandle(l.look), grpc.MaxConcurrentStreams(unauthenticatedStreams)}
}

// unauthenticatedLimiter limits the calls of peers without a certificate.
type unauthenticatedLimiter struct {
	guard *Guard
	// open counts them by host.
	open *quota.Open
}

// look must not block, because it would block the whole connection.
func (l *unauthenticatedLimiter) look(ctx context.Context, call *tap.Info) (context.Context, error) {
	p := presentedIn(ctx)
	if p.tls != nil && len(p.tls.VerifiedChains) > 0 {
		return ctx, nil
	}
	now, cancel := context.WithCancel(ctx)
	cancel()
	_, known, err := l.guard.identify(now, p)
	if known {
		// Permissions are checked later.
		return ctx, nil
	}
	// While the tables are loading, the owner of a token is not known: the call waits.
	waits := status.Code(err) == codes.Unavailable
	if !waits {
		if _, err := l.guard.admitCall(now, call.FullMethodName, p); err != nil {
			return nil, err
		}
	}
	host := HostOf(p.address)
	if !l.open.Enter(host) {
		return nil, TooMany(time.Second, "%s has %d calls open without an identity", host, unauthenticatedCalls)
	}
	// The slot is released when the call ends.
	context.AfterFunc(ctx, func() { l.open.Leave(host) })
	if waits {
		return ctx, nil
	}
	ctx, cancel = context.WithTimeout(ctx, unauthenticatedTime)
	context.AfterFunc(ctx, cancel)
	return ctx, nil
}

// TooMany is the error of a call that is one too many: RESOURCE_EXHAUSTED, with the
// time in which to try again (google.rpc.RetryInfo), a millisecond at least.
func TooMany(wait time.Duration, format string, a ...any) error {
	wait = max(wait.Round(time.Millisecond), time.Millisecond)
	s := status.Newf(codes.ResourceExhausted, format, a...)
	if detailed, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(wait)}); err == nil {
		s = detailed
	}
	return s.Err()
}
