package consul

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/hashicorp/consul/api"

	"github.com/musterhq/muster/internal/kv"
)

// classify wraps an error of the client in one of kv's classes. ctx is the caller's
// context.
func classify(ctx context.Context, err error) error {
	var status api.StatusError
	switch {
	case errors.Is(err, kv.ErrLimited):
		return err
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
	// All other errors are errors of the connection.
	return fmt.Errorf("%w: %w", kv.ErrUnavailable, err)
}
