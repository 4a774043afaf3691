package store

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/musterhq/muster/internal/kv"
)

// health tracks whether calls of the kv succeed.
type health struct {
	mu     sync.Mutex
	tables []tableHealth
	commit error // result of the committer's last call
	// away is when the kv became unavailable for a table or for the probe, or zero.
	away      time.Time
	probe     error // result of the last probe
	lastProbe time.Time
	// changed is closed and replaced when a table or the probe has recovered.
	changed chan struct{}
}

type tableHealth struct {
	err   error     // result of the last attempt to read the table
	since time.Time // when err became non-nil
}

func newHealth(tables int, now time.Time) *health {
	h := &health{tables: make([]tableHealth, tables), lastProbe: now, changed: make(chan struct{})}
	for i := range h.tables {
		h.tables[i] = tableHealth{err: errors.New("not loaded yet"), since: now}
	}
	return h
}

// availabilityChange says whether the kv was unavailable before a report and is
// unavailable after it. since is how long it was unavailable.
type availabilityChange struct {
	was, away bool
	since     time.Duration
}

// report records the result of an attempt to read a table.
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

// updateAway computes whether the kv is unavailable. The caller holds the lock.
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

// reportProbe records the result of a probe.
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

// wakeOnRecovery wakes the callers of available if an error is gone. The caller holds
// the lock.
func (h *health) wakeOnRecovery(before, now error) {
	if before != nil && now == nil {
		close(h.changed)
		h.changed = make(chan struct{})
	}
}

// available returns nil unless a table cannot be read because the kv is unavailable. It
// also returns a channel that is closed after the next recovery. A probe without an
// answer does not count: a slow kv still accepts writes.
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

// outage returns an error if the kv is unavailable.
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

// staleness returns the longest time for which a table or the probe has been failing.
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

// err returns the error of the first table that cannot be read, or of the last probe.
func (h *health) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.errLocked()
}

func (h *health) errLocked() error {
	for _, t := range h.tables {
		if t.err != nil {
			return t.err
		}
	}
	return h.probe
}
