package session

import (
	"math/rand/v2"
	"slices"
	"sync"
)

// directory knows the addresses of dispatchers, and which one to try next.
type directory struct {
	mu sync.Mutex
	// seeds are the worker's own settings; they are never forgotten.
	seeds []string
	// learned are what dispatchers said last.
	learned []string
	// next is the one to try before all others: the owner of the node's shard,
	// as far as is known.
	next string
	// untried are the others, in the order in which they are tried.
	untried []string
	// bad is the one that failed last: it comes after all others.
	bad string
}

func newDirectory(seeds []string) *directory {
	return &directory{seeds: slices.Clone(seeds)}
}

// pick returns the address to try next. Where nothing is known, workers go
// about in random order, so that they spread over the dispatchers.
func (d *directory) pick() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.next != "" {
		return d.next
	}
	d.refill()
	return d.untried[0]
}

// refill begins again with all addresses when each has been tried. The lock is
// held.
func (d *directory) refill() {
	if len(d.untried) > 0 {
		return
	}
	d.untried = slices.Concat(d.learned, d.seeds)
	slices.Sort(d.untried)
	d.untried = slices.Compact(d.untried)
	rand.Shuffle(len(d.untried), func(i, j int) { d.untried[i], d.untried[j] = d.untried[j], d.untried[i] })
	if i := slices.Index(d.untried, d.bad); i >= 0 {
		d.untried = append(slices.Delete(d.untried, i, i+1), d.bad)
	}
}

// prefer makes an address the next to be tried.
func (d *directory) prefer(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next = address
}

// failed puts an address behind all others.
func (d *directory) failed(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.next == address {
		d.next = ""
	}
	d.bad = address
	d.untried = slices.DeleteFunc(d.untried, func(a string) bool { return a == address })
}

// learn takes in what a dispatcher said of all dispatchers.
func (d *directory) learn(addresses []string) {
	if len(addresses) == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.learned = slices.Clone(addresses)
	d.untried = nil
}
