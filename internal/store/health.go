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
	// away is since when the kv is away for any table, or zero.
	away time.Time
}

type tableHealth struct {
	err   error     // of the last attempt to follow the table
	since time.Time // the last contact, if err is not nil
}

func newHealth(tables int, now time.Time) *health {
	h := &health{tables: make([]tableHealth, tables)}
	for i := range h.tables {
		h.tables[i] = tableHealth{err: errors.New("not loaded yet"), since: now}
	}
	return h
}

// report notes how an attempt to follow a table ended. It returns whether the kv
// was away before for any table, whether it is now, and since when it was.
func (h *health) report(table int, err error) (was, is bool, since time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := &h.tables[table]
	if err != nil && t.err == nil {
		t.since = time.Now()
	}
	t.err = err
	is = slices.ContainsFunc(h.tables, func(t tableHealth) bool { return errors.Is(t.err, kv.ErrUnavailable) })
	was = !h.away.IsZero()
	switch {
	case is && !was:
		h.away = time.Now()
	case was && !is:
		since, h.away = time.Since(h.away), time.Time{}
	}
	return was, is, since
}

func (h *health) reportCommit(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.commit = err
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
	return worst
}

// err returns what keeps a table from being loaded or followed.
func (h *health) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.tables {
		if t.err != nil {
			return t.err
		}
	}
	return nil
}
