package quota

import "sync"

// Open bounds how many calls, streams or connections each client has open.
type Open struct {
	most int

	mu   sync.Mutex
	open map[string]int
}

// NewOpen returns the bound of so many for each client; nil if most is 0.
func NewOpen(most int) *Open {
	if most <= 0 {
		return nil
	}
	return &Open{most: most, open: map[string]int{}}
}

// Enter counts one more of a client. It returns false if that is one too many.
func (o *Open) Enter(client string) bool {
	if o == nil {
		return true
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.open[client] >= o.most {
		return false
	}
	o.open[client]++
	return true
}

// Leave undoes Enter.
func (o *Open) Leave(client string) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.open[client]--; o.open[client] == 0 {
		delete(o.open, client)
	}
}
