package embedded

import (
	"context"

	"github.com/musterhq/muster/internal/kv"
)

// Describe names this process as leader.
func (s *KV) Describe(ctx context.Context) (kv.Description, error) {
	d := kv.Description{Kind: "embedded"}
	err := s.do(ctx, func() error {
		d.Leader = "this process"
		return nil
	})
	return d, err
}

// Processes returns none, because there is no catalog.
func (s *KV) Processes(context.Context, string) ([]kv.Process, error) { return nil, nil }
