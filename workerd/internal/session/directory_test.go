package session

import (
	"slices"
	"testing"
)

// TestFailedDispatcherComesLast tries all others before the one that failed, for
// one that hangs costs seconds each time.
func TestFailedDispatcherComesLast(t *testing.T) {
	t.Parallel()
	for range 100 {
		d := newDirectory([]string{"a", "b"})
		d.learn([]string{"a", "b", "c"})
		d.prefer("b")
		last := d.pick()
		for range 3 {
			var tried []string
			for range 3 {
				d.failed(last)
				last = d.pick()
				tried = append(tried, last)
			}
			if slices.Sort(tried); !slices.Equal(tried, []string{"a", "b", "c"}) || last != "b" {
				t.Fatalf("after a failure of b there were tried %v, the last %s", tried, last)
			}
			d.prefer("b")
		}
		d.learn([]string{"a", "b"})
		d.failed("b")
		if next := d.pick(); next != "a" {
			t.Fatalf("after a failure of b %s was tried", next)
		}
	}
}
