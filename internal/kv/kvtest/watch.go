package kvtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/kv"
)

// testListsApart changes one prefix and checks that who waits for another is
// left in peace.
func testListsApart(t *testing.T, f *fixture) {
	f.txn(t, f.op(kv.Set, "mine/a", "1", 0), f.op(kv.Set, "other/a", "1", 0))
	_, index, err := f.List(f.ctx, f.key("mine/"), kv.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(f.ctx, 300*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			if _, err := f.Txn(f.ctx, []kv.Op{f.op(kv.Set, "other/a", fmt.Sprint(i), 0)}); err != nil {
				t.Errorf("Txn: %v", err)
			}
		}
	})
	wakeups := 0
	for {
		_, next, err := f.List(ctx, f.key("mine/"), kv.ListOptions{After: index})
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		wakeups++
		index = next
	}
	wg.Wait()
	if wakeups > 1 {
		t.Errorf("%d wake-ups without a change", wakeups)
	}
}

// testIndexGrows writes from many sides and checks that no two transactions
// share an index, and that a list's index covers all that was written before.
func testIndexGrows(t *testing.T, f *fixture) {
	const writers, writes = 4, 15
	var (
		mu   sync.Mutex
		seen = map[uint64]string{}
		wg   sync.WaitGroup
	)
	for w := range writers {
		wg.Go(func() {
			var last uint64
			for i := range writes {
				key := fmt.Sprintf("%d/%d", w, i)
				pairs, err := f.Txn(f.ctx, []kv.Op{f.op(kv.Set, key, "x", 0)})
				if err != nil {
					t.Errorf("Txn: %v", err)
					return
				}
				index := pairs[0].Index
				_, listed, err := f.List(f.ctx, f.prefix, kv.ListOptions{})
				if err != nil {
					t.Errorf("List: %v", err)
					return
				}
				mu.Lock()
				if other, twice := seen[index]; twice {
					t.Errorf("index %d was given to %s and %s", index, other, key)
				}
				seen[index] = key
				mu.Unlock()
				if index <= last {
					t.Errorf("index %d after %d", index, last)
				}
				if listed < index {
					t.Errorf("a list after index %d has index %d", index, listed)
				}
				last = index
			}
		})
	}
	wg.Wait()
}

// testSameValue writes what is there already: it is no change.
func testSameValue(t *testing.T, f *fixture) {
	first := f.txn(t, f.op(kv.Set, "a", "1", 0))[0]
	_, index := f.list(t)
	again := f.txn(t, f.op(kv.Set, "a", "1", 0), f.op(kv.CAS, "a", "1", first.Index))
	if now := f.get(t, "a"); now.Index != first.Index {
		t.Errorf("index went from %d to %d with the same value, want it to stay", first.Index, now.Index)
	}
	for _, p := range again {
		if p.Index != first.Index {
			t.Errorf("the transaction answers with index %d, the key has %d", p.Index, first.Index)
		}
	}
	ctx, cancel := context.WithTimeout(f.ctx, 100*time.Millisecond)
	defer cancel()
	if pairs, _, err := f.List(ctx, f.prefix, kv.ListOptions{After: index}); err == nil {
		t.Errorf("List was woken by no change: %+v", pairs)
	}
}
