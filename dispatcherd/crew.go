package dispatcherd

import "sync"

// crew is all calls that are being served and the goroutines that work for
// them, so that Run can wait for their end.
type crew struct {
	mu        sync.Mutex
	dismissed bool
	wg        sync.WaitGroup
}

// join lets a call in, or reports that it is too late.
func (c *crew) join() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dismissed {
		return false
	}
	c.wg.Add(1)
	return true
}

func (c *crew) leave() { c.wg.Done() }

// spawn runs f beside a call that has joined and not left.
func (c *crew) spawn(f func()) { c.wg.Go(f) }

// dismiss lets nobody in any more, and waits for all to leave.
func (c *crew) dismiss() {
	c.mu.Lock()
	c.dismissed = true
	c.mu.Unlock()
	c.wg.Wait()
}
