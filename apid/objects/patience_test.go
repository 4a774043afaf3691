package objects

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestPatience keeps what has changed for watches that are late, however many changes
// come: those in which a batch is worked out do not count, for no watch can read then.
func TestPatience(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const most = 10
		h := newHistory(most)
		h.begin(Point{})
		add := func(begun time.Time) { h.add(make([]Change, most), Point{}, begun, 0) }
		add(time.Now())
		begun := time.Now()
		time.Sleep(2 * patience)
		add(begun)
		if h.first != 0 {
			t.Error("a batch that no watch could read yet is forgotten")
		}
		time.Sleep(patience + time.Millisecond)
		add(time.Now())
		if h.first != 2 {
			t.Errorf("of three batches, two of them from longer ago than a watch may be late, %d are forgotten, want 2", h.first)
		}
		for range burst {
			add(time.Now())
		}
		if h.size > burst*most {
			t.Errorf("%d changes are kept, want at most %d", h.size, burst*most)
		}
	})
}
