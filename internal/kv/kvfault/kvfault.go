// Package kvfault injects faults into a kv, for tests and simulations. Calls can fail,
// be slow, hang, or be applied without an answer, and sessions can be lost. The faults
// depend only on the calls, so that a run can be repeated.
package kvfault

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/musterhq/muster/internal/kv"
)

// Op is the kind of a call.
type Op string

// The operations into which faults can be injected.
const (
	Txn     Op = "txn"
	List    Op = "list"
	Get     Op = "get"
	Session Op = "session" // opening one
	Acquire Op = "acquire"
	Release Op = "release"
	// Close ends a session. If this is broken, the session lasts until
	// LoseSessions.
	Close Op = "close"
	// Describe is both of the calls that ask the store about itself and about
	// processes.
	Describe Op = "describe"
)

// Call describes a call before it is made.
type Call struct {
	Op Op
	// Keys are those it names; the prefix for List, none for Session and Describe.
	Keys []string
	// Writes says whether it would change something.
	Writes bool
}

// Fault describes a fault and the calls that it affects: those that meet all of its
// conditions. Every call meets a condition that is not set. If several faults match, the
// one that was injected first applies.
type Fault struct {
	// Op, Prefix and When are conditions: of what the call does, of a key
	// that it names, and of anything else.
	Op     Op
	Prefix string
	When   func(Call) bool
	// Skip lets that many calls pass that meet the conditions.
	Skip int
	// Times is how many calls it hits after that; 0 means all.
	Times int

	// Applied makes the call before anything else, and hides its result if Err
	// or Hang is set: the outcome is unknown to the caller.
	Applied bool
	// Delay is how long the call takes longer.
	Delay time.Duration
	// Hang makes the call wait until its context ends or the fault is removed.
	Hang bool
	// Err is what the call returns. Wrap one of kv's classes, as a store would.
	Err error
}

// KV is a kv with injected faults. It implements kv.KV.
type KV struct {
	inner kv.KV

	mu       sync.Mutex
	faults   []*injected
	calls    map[Op]int
	lists    map[*running]struct{}
	sessions map[*session]struct{}
}

var _ kv.KV = (*KV)(nil)

// injected is an active fault.
type injected struct {
	Fault
	met     int
	removed chan struct{}
}

// running is a List that may be blocked.
type running struct {
	call  Call
	abort context.CancelCauseFunc
}

// New returns a kv that passes calls to another one until a fault is injected.
func New(inner kv.KV) *KV {
	return &KV{inner: inner, calls: map[Op]int{}, lists: map[*running]struct{}{}, sessions: map[*session]struct{}{}}
}

// Inject activates a fault until remove is called; remove may be called more than once.
// If the fault has an Err, and neither Skip nor Times, it also ends blocked lists, as a
// store does that becomes unavailable.
func (k *KV) Inject(f Fault) (remove func()) {
	in := &injected{Fault: f, removed: make(chan struct{})}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.faults = append(k.faults, in)
	if f.Err != nil && f.Skip == 0 && f.Times == 0 {
		for r := range k.lists {
			if in.meets(r.call) {
				r.abort(f.Err)
			}
		}
	}
	return sync.OnceFunc(func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		for i, other := range k.faults {
			if other == in {
				k.faults = append(k.faults[:i:i], k.faults[i+1:]...)
			}
		}
		close(in.removed)
	})
}

// Cut makes every call and all blocked lists fail, as a network partition does.
func (k *KV) Cut() (mend func()) {
	return k.Inject(Fault{Err: fmt.Errorf("cut off: %w", kv.ErrUnavailable)})
}

// Waiting returns the number of running lists.
func (k *KV) Waiting() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.lists)
}

// Calls returns the number of calls of an operation.
func (k *KV) Calls(d Op) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.calls[d]
}

// LoseSessions ends all sessions that were opened here, as a store does when their
// processes seem dead: their locks become free, and Lost is closed.
func (k *KV) LoseSessions(ctx context.Context) error {
	k.mu.Lock()
	var open []*session
	for s := range k.sessions {
		open = append(open, s)
	}
	clear(k.sessions)
	k.mu.Unlock()
	for _, s := range open {
		if err := s.Session.Close(ctx); err != nil {
			return fmt.Errorf("lose session %s: %w", s.ID(), err)
		}
	}
	return nil
}

func (f *injected) meets(c Call) bool {
	if f.Op != "" && f.Op != c.Op || f.When != nil && !f.When(c) {
		return false
	}
	if f.Prefix == "" {
		return true
	}
	for _, key := range c.Keys {
		if strings.HasPrefix(key, f.Prefix) {
			return true
		}
	}
	return false
}

// hit counts a call and returns the fault that applies to it, or nil.
func (k *KV) hit(c Call) *injected {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls[c.Op]++
	for _, f := range k.faults {
		if !f.meets(c) {
			continue
		}
		f.met++
		if f.met > f.Skip && (f.Times == 0 || f.met <= f.Skip+f.Times) {
			return f
		}
	}
	return nil
}

// do makes a call with the fault that applies to it.
func (k *KV) do(ctx context.Context, c Call, call func() error) error {
	f := k.hit(c)
	if f == nil {
		return call()
	}
	if f.Applied {
		if err := call(); err != nil {
			return err
		}
	}
	if err := f.hold(ctx); err != nil {
		return fmt.Errorf("%s: %w: %w", c.Op, kv.ErrUnavailable, err)
	}
	switch {
	case f.Err != nil:
		return fmt.Errorf("%s: %w", c.Op, f.Err)
	case f.Applied:
		return nil
	}
	return call()
}

// hold waits for the delay of the fault.
func (f *injected) hold(ctx context.Context) error {
	if f.Delay > 0 {
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if f.Hang {
		select {
		case <-f.removed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
