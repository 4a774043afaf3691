package kvtest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/kv"
)

// pageSize is what a page of records is about as large as.
const pageSize = 8 << 10

// Bench measures what the store of tables asks of a kv: transactions of pages,
// the list of a table's heads, and how soon a change wakes who waits for it.
func Bench(b *testing.B, open func(b *testing.B) kv.KV) {
	s := open(b)
	page := make([]byte, pageSize)
	// pages are n writes; number keeps each different from the one before.
	pages := func(prefix string, n, number int) []kv.Op {
		ops := make([]kv.Op, n)
		value := append([]byte(fmt.Sprint(number)), page...)
		for i := range ops {
			ops[i] = kv.Op{Verb: kv.Set, Key: fmt.Sprintf("bench/%s/%02d", prefix, i), Value: value}
		}
		return ops
	}
	write := func(b *testing.B, ops []kv.Op) {
		if _, err := s.Txn(b.Context(), ops); err != nil {
			b.Fatal(err)
		}
	}
	for _, n := range []int{1, 32} {
		b.Run(fmt.Sprintf("Txn/pages=%d", n), func(b *testing.B) {
			b.SetBytes(int64(n * pageSize))
			for i := 0; b.Loop(); i++ {
				write(b, pages("txn", n, i))
			}
		})
	}
	b.Run("Txn/pages=1/writers=16", func(b *testing.B) {
		b.SetBytes(pageSize)
		b.SetParallelism(8) // for each of two processors
		b.RunParallel(func(pb *testing.PB) {
			own := fmt.Sprintf("own-%p", pb)
			for i := 0; pb.Next(); i++ {
				if _, err := s.Txn(b.Context(), pages(own, 1, i)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
	b.Run("Read/pages=16", func(b *testing.B) {
		write(b, pages("read", 16, 0))
		ops := pages("read", 16, 0)
		for i := range ops {
			ops[i] = kv.Op{Verb: kv.Get, Key: ops[i].Key}
		}
		for b.Loop() {
			if pairs, err := s.Txn(b.Context(), ops); err != nil || len(pairs) != 16 {
				b.Fatalf("%d pairs, %v", len(pairs), err)
			}
		}
	})
	b.Run("List/heads=16", func(b *testing.B) {
		write(b, pages("heads", 16, 0))
		for b.Loop() {
			if pairs, _, err := s.List(b.Context(), "bench/heads/", kv.ListOptions{Stale: true}); err != nil || len(pairs) != 16 {
				b.Fatalf("%d pairs, %v", len(pairs), err)
			}
		}
	})
	for _, waiters := range []int{1, 100} {
		b.Run(fmt.Sprintf("Wake/waiters=%d", waiters), func(b *testing.B) { benchWake(b, s, waiters) })
	}
}

// benchWake measures the time from the start of a write until who waits for it
// has seen it, and how much of that came after the writer had its answer. The
// other waiters wait for something else.
func benchWake(b *testing.B, s kv.KV, waiters int) {
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for i := range waiters - 1 {
		idle := fmt.Sprintf("bench/idle/%02d/", i)
		if _, err := s.Txn(ctx, []kv.Op{{Verb: kv.Set, Key: idle + "head", Value: []byte("x")}}); err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			var index uint64
			for ctx.Err() == nil {
				_, index, _ = s.List(ctx, idle, kv.ListOptions{After: index})
			}
		})
	}
	seen := make(chan uint64)
	wg.Go(func() {
		defer close(seen)
		var after uint64
		for {
			_, next, err := s.List(ctx, "bench/wake", kv.ListOptions{After: after})
			if err != nil {
				return
			}
			after = next
			select {
			case seen <- next:
			case <-ctx.Done():
				return
			}
		}
	})
	<-seen
	var waited time.Duration
	for i := 0; b.Loop(); i++ {
		pairs, err := s.Txn(ctx, []kv.Op{{Verb: kv.Set, Key: "bench/wake", Value: []byte(fmt.Sprint(i))}})
		if err != nil {
			b.Fatal(err)
		}
		committed := time.Now()
		for index := range seen {
			if index >= pairs[0].Index {
				break
			}
		}
		waited += time.Since(committed)
	}
	b.ReportMetric(float64(waited.Nanoseconds())/float64(b.N), "ns-after-commit/op")
}
