package cli

import (
	"context"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/internal/backoff"
)

const (
	// tries is how often a call is made that is refused because there are too many.
	tries = 8
	// shortPause is the least pause before the second try, in addition to what the
	// server wants; longestPause bounds the later ones, which grow.
	shortPause, longestPause = 50 * time.Millisecond, 10 * time.Second
)

// RetryRefused has calls made again that the server refused because there were too
// many, so that scripts need not do so themselves. Such a call has done nothing.
func RetryRefused() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
			return again(ctx, func() error { return invoke(ctx, method, req, reply, conn, options...) })
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
			reopen := func() (grpc.ClientStream, error) { return open(ctx, desc, conn, method, options...) }
			s, err := reopen()
			return &retryStream{ClientStream: s, ctx: ctx, reopen: reopen}, err
		}),
	}
}

// retryStream is a stream that is opened again when it is refused. All of Muster's have
// one request.
type retryStream struct {
	grpc.ClientStream
	// ctx is the call's: that of the stream ends when it is refused.
	ctx     context.Context
	reopen  func() (grpc.ClientStream, error)
	request any
	// begun says that an answer has come.
	begun bool
}

func (p *retryStream) SendMsg(m any) error {
	p.request = m
	return p.ClientStream.SendMsg(m)
}

func (p *retryStream) RecvMsg(m any) error {
	if p.begun {
		return p.ClientStream.RecvMsg(m)
	}
	p.begun = true
	first := true
	return again(p.ctx, func() error {
		if !first {
			if err := p.resend(); err != nil {
				return err
			}
		}
		first = false
		return p.ClientStream.RecvMsg(m)
	})
}

func (p *retryStream) resend() error {
	s, err := p.reopen()
	if err != nil {
		return err
	}
	p.ClientStream = s
	if err := s.SendMsg(p.request); err != nil {
		return err
	}
	return s.CloseSend()
}

// again makes a call until it is not refused for being one too many, or time or
// tries are over.
func again(ctx context.Context, call func() error) error {
	pause := backoff.New(2*shortPause, longestPause)
	for n := 1; ; n++ {
		err := call()
		least, refused := tooMany(err)
		if !refused || n == tries {
			return err
		}
		// Clients that were refused together do not come back together.
		wait := least + pause.Next()
		if ends, ok := ctx.Deadline(); ok && time.Until(ends) < wait {
			return err
		}
		if backoff.Sleep(ctx, wait) != nil {
			return err
		}
	}
}

// tooMany reports whether an error says that there were too many calls, and in what
// time to try again.
func tooMany(err error) (time.Duration, bool) {
	s := status.Convert(err)
	if s.Code() != codes.ResourceExhausted {
		return 0, false
	}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.RetryDelay.AsDuration(), true
		}
	}
	return 0, false
}
