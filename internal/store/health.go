package store

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/musterhq/muster/internal/kv"
)

// health keeps what is known of the contact with the kv.
type health struct {
	mu     sync.Mutex
	tables []tableHealth
	commit error // of the committer's last call
	// away is since when the kv is away for any table or for the pulse, or zero.
	away  time.Time
	pulse error // of the last pulse
	felt  time.Time
	// changed is closed and replaced when something has got better.
	changed chan struct{}
}

type tableHealth struct {
	err   error     // of the last attempt to follow the table
	since time.Time // the last contact, if err is not nil
}

func newHealth(tables int, now time.Time) *health {
	h := &health{tables: make([]tableHealth, tables), felt: now, changed: make(chan struct{})}
	for i := range h.tables {
		h.tables[i] = tableHealth{err: errors.New("not loaded yet"), since: now}
	}
	return h
}

// contactChange says whether the kv was away before something was reported, and
// is now; and for how long it was.
type contactChange struct {
	was, away bool
	since     time.Duration
}

// report notes how an attempt to follow a table ended.
func (h *health) report(table int, err error) contactChange {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := &h.tables[table]
	if err != nil && t.err == nil {
		t.since = time.Now()
	}
	h.better(t.err, err)
	t.err = err
	return h.change()
}

// change looks again whether the kv is away. The lock is held.
func (h *health) change() contactChange {
	c := contactChange{was: !h.away.IsZero()}
	c.away = errors.Is(h.pulse, kv.ErrUnavailable) ||
		slices.ContainsFunc(h.tables, func(t tableHealth) bool { return errors.Is(t.err, kv.ErrUnavailable) })
	switch {
	case c.away && !c.was:
		h.away = time.Now()
	case c.was && !c.away:
		c.since, h.away = time.Since(h.away), time.Time{}
	}
	return c
}

func (h *health) reportCommit(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.commit = err
}

// reportPulse notes how a pulse ended.
func (h *health) reportPulse(err error, now time.Time) contactChange {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.felt = now
	}
	h.better(h.pulse, err)
	h.pulse = err
	return h.change()
}

// better wakes who waits for contact. The lock is held.
func (h *health) better(before, now error) {
	if before != nil && now == nil {
		close(h.changed)
		h.changed = make(chan struct{})
	}
}

// contact returns why the kv is known to be away: a table cannot be followed. It
// also returns a channel that is closed when something has got better. That a
// pulse had no answer in time is no proof: a kv that is slow still takes writes.
func (h *health) contact() (changed <-chan struct{}, away error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.tables {
		if errors.Is(t.err, kv.ErrUnavailable) {
			return h.changed, t.err
		}
	}
	return h.changed, nil
}

// trouble returns an error that says that the kv is away, if it is.
func (h *health) trouble() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.tables {
		if errors.Is(t.err, kv.ErrUnavailable) {
			return t.err
		}
	}
	if errors.Is(h.pulse, kv.ErrUnavailable) {
		return h.pulse
	}
	if h.commit != nil && unavailable(h.commit) {
		if errors.Is(h.commit, kv.ErrUnavailable) {
			return h.commit
		}
		return kv.ErrUnavailable
	}
	return nil
}

// staleness returns for how long the table that is worst off has been without
// contact.
func (h *health) staleness() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	var worst time.Duration
	for _, t := range h.tables {
		if t.err != nil {
			worst = max(worst, time.Since(t.since))
		}
	}
	if h.pulse != nil {
		worst = max(worst, time.Since(h.felt))
	}
	return worst
}

// err returns what keeps a table from being loaded or followed, or the kv from
// being felt.
func (h *health) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.wrong()
}

// wrong does it with the lock held.
func (h *health) wrong() error {
	for _, t := range h.tables {
		if t.err != nil {
			return t.err
		}
	}
	return h.pulse
}
