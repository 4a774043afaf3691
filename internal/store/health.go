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
	// away is since when the kv is away for any table or for the probe, or zero.
	away      time.Time
	probe     error // of the last probe
	lastProbe time.Time
	// changed is closed and replaced when something has got better.
	changed chan struct{}
}

type tableHealth struct {
	err   error     // of the last attempt to follow the table
	since time.Time // the last contact, if err is not nil
}

func newHealth(tables int, now time.Time) *health {
	h := &health{tables: make([]tableHealth, tables), lastProbe: now, changed: make(chan struct{})}
	for i := range h.tables {
		h.tables[i] = tableHealth{err: errors.New("not loaded yet"), since: now}
	}
	return h
}

// availabilityChange says whether the kv was away before something was reported, and
// is now; and for how long it was.
type availabilityChange struct {
	was, away bool
	since     time.Duration
}

// report notes how an attempt to follow a table ended.
func (h *health) report(table int, err error) availabilityChange {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := &h.tables[table]
	if err != nil && t.err == nil {
		t.since = time.Now()
	}
	h.wakeOnRecovery(t.err, err)
	t.err = err
	return h.updateAway()
}

// updateAway looks again whether the kv is away. The lock is held.
func (h *health) updateAway() availabilityChange {
	c := availabilityChange{was: !h.away.IsZero()}
	c.away = errors.Is(h.probe, kv.ErrUnavailable) ||
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

// reportProbe notes how a probe ended.
func (h *health) reportProbe(err error, now time.Time) availabilityChange {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.lastProbe = now
	}
	h.wakeOnRecovery(h.probe, err)
	h.probe = err
	return h.updateAway()
}

// wakeOnRecovery wakes who waits for contact. The lock is held.
func (h *health) wakeOnRecovery(before, now error) {
	if before != nil && now == nil {
		close(h.changed)
		h.changed = make(chan struct{})
	}
}

// available returns why the kv is known to be away: a table cannot be followed. It
// also returns a channel that is closed when something has got better. That a
// probe had no answer in time is no proof: a kv that is slow still takes writes.
func (h *health) available() (changed <-chan struct{}, away error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.tables {
		if errors.Is(t.err, kv.ErrUnavailable) {
			return h.changed, t.err
		}
	}
	return h.changed, nil
}

// outage returns an error that says that the kv is away, if it is.
func (h *health) outage() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.tables {
		if errors.Is(t.err, kv.ErrUnavailable) {
			return t.err
		}
	}
	if errors.Is(h.probe, kv.ErrUnavailable) {
		return h.probe
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
	if h.probe != nil {
		worst = max(worst, time.Since(h.lastProbe))
	}
	return worst
}

// err returns what keeps a table from being loaded or followed, or the kv from
// being felt.
func (h *health) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.errLocked()
}

// errLocked does it with the lock held.
func (h *health) errLocked() error {
	for _, t := range h.tables {
		if t.err != nil {
			return t.err
		}
	}
	return h.probe
}
