package session

import (
	"context"
	"math"
	"sync"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// lineCost is what a line takes of the credit beside the size of its encoding:
// the contract says so (see LogRequest).
const lineCost = 256

// credit is how much of a subscription's output may still be sent: what the
// dispatcher has room for.
type credit struct {
	unlimited bool
	// more has room for one: there is credit again.
	more chan struct{}

	mu   sync.Mutex
	left int64
}

func newCredit(given uint64) *credit {
	c := &credit{unlimited: given == 0, more: make(chan struct{}, 1)}
	c.add(given)
	return c
}

// add takes in what the dispatcher has given.
func (c *credit) add(given uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	room := uint64(math.MaxInt64 - max(c.left, 0))
	c.left += int64(min(given, room))
	if c.left > 0 {
		select {
		case c.more <- struct{}{}:
		default:
		}
	}
}

// await waits until something may be sent.
func (c *credit) await(ctx context.Context) error {
	for !c.unlimited && !c.some() {
		select {
		case <-c.more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return ctx.Err()
}

func (c *credit) some() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left > 0
}

// spend takes what lines cost. The last message may cost more than is left.
func (c *credit) spend(lines []*musterv1.LogMessage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, line := range lines {
		c.left -= int64(proto.Size(line) + lineCost)
	}
}
