package consul

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/hashicorp/consul/api"

	"github.com/musterhq/muster/internal/kv"
)

// classify puts an error of the client's into one of kv's classes. ctx is the
// caller's.
func classify(ctx context.Context, err error) error {
	var status api.StatusError
	switch {
	case errors.As(err, &status):
		switch {
		case status.Code == http.StatusRequestEntityTooLarge:
			return fmt.Errorf("%w: %w", kv.ErrTooLarge, err)
		case status.Code >= 500 || status.Code == http.StatusTooManyRequests:
			return fmt.Errorf("%w: %w", kv.ErrUnavailable, err)
		}
		return err
	case ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)):
		return fmt.Errorf("%w: %w: %w", kv.ErrUnavailable, context.Cause(ctx), err)
	}
	// Everything else happened on the way there or back.
	return fmt.Errorf("%w: %w", kv.ErrUnavailable, err)
}

// statusNoter notes the status of an answer where the call's context asks for
// it, because the client leaves it out of the errors of transactions.
type statusNoter struct{ http.RoundTripper }

type statusKey struct{}

// noteStatus returns a context for a call, and what tells the status of its
// answer: 0 if there was none.
func noteStatus(ctx context.Context) (context.Context, func() int) {
	var status atomic.Int64
	return context.WithValue(ctx, statusKey{}, &status), func() int { return int(status.Load()) }
}

func (n statusNoter) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := n.RoundTripper.RoundTrip(req)
	if status, ok := req.Context().Value(statusKey{}).(*atomic.Int64); ok && err == nil {
		status.Store(int64(resp.StatusCode))
	}
	return resp, err
}
