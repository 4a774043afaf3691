package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/test/kit/consultest"
)

var shared consultest.Shared

func TestMain(m *testing.M) { os.Exit(shared.Run(m)) }

// onEach runs a test on the embedded kv and on a Consul server, with a new prefix each.
func onEach(t *testing.T, test func(t *testing.T, opt store.Options)) {
	t.Run("embedded", func(t *testing.T) { test(t, store.Options{KV: newKV(t)}) })
	t.Run("consul", func(t *testing.T) {
		test(t, store.Options{KV: shared.Start(t).KV(t), Prefix: fmt.Sprintf("test%x", rand.Uint64())})
	})
}

func numbers(name string) *store.Table[int] {
	return store.NewTable(name, store.Codec[int]{
		Encode: func(n int) ([]byte, error) { return fmt.Appendf(nil, "%d", n), nil },
		Decode: func(b []byte) (n int, err error) {
			_, err = fmt.Sscanf(string(b), "%d", &n)
			return n, err
		},
	})
}

// TestSnapshotsShowUpdatesAtomically moves amounts between accounts in all shards from
// several stores at once. Each snapshot must show the same total.
func TestSnapshotsShowUpdatesAtomically(t *testing.T) {
	onEach(t, func(t *testing.T, opt store.Options) {
		const accounts, each, movers, moves = 64, 100, 4, 40
		table := numbers("accounts")
		key := func(i int) string { return fmt.Sprintf("account%d", i) }
		opt.MaxPage = 64
		first, _ := open(t, opt, table)
		update(t, first, func(tx *store.Tx) {
			for i := range accounts {
				table.Put(tx, key(i), each)
			}
		})
		total := func(r store.Reader) int {
			sum := 0
			for e := range table.Scan(r, "") {
				sum += e.Value
			}
			return sum
		}

		ctx, cancel := context.WithCancel(t.Context())
		var readers, writers sync.WaitGroup
		for range 3 {
			s, _ := open(t, opt, table)
			for r := range 2 {
				readers.Go(func() {
					var sn *store.Snapshot
					var seen []uint64
					for {
						var err error
						if r == 0 {
							sn, err = s.Wait(ctx, sn)
						} else {
							sn, err = s.Snapshot(), ctx.Err()
						}
						if err != nil {
							return
						}
						if n := total(sn); n != accounts*each {
							t.Errorf("total=%d, want %d", n, accounts*each)
							return
						}
						now := table.Sequences(sn)
						for i := range seen {
							if now[i] < seen[i] {
								t.Errorf("sequence number of shard %d decreased from %d to %d", i, seen[i], now[i])
								return
							}
						}
						seen = now
					}
				})
			}
			for range movers {
				writers.Go(func() {
					for range moves {
						from, to, n := key(rand.IntN(accounts)), key(rand.IntN(accounts)), rand.IntN(20)
						if err := s.Update(ctx, func(tx *store.Tx) error {
							a, ok := table.Get(tx, from)
							if !ok || a.Value < n {
								table.Delete(tx, "unknown")
								return nil
							}
							table.Put(tx, from, a.Value-n)
							b, _ := table.Get(tx, to)
							table.Put(tx, to, b.Value+n)
							return nil
						}); err != nil {
							t.Errorf("move: %v", err)
							return
						}
					}
				})
			}
		}
		writers.Wait()
		cancel()
		readers.Wait()
		last, _ := open(t, opt, table)
		if n := total(last.Snapshot()); n != accounts*each {
			t.Errorf("total=%d in the end, want %d", n, accounts*each)
		}
	})
}

// TestConcurrentUpdatesAreAppliedOnce increments a counter from several stores at once.
func TestConcurrentUpdatesAreAppliedOnce(t *testing.T) {
	onEach(t, func(t *testing.T, opt store.Options) {
		const stores, each = 3, 200
		table := numbers("counters")
		var wg sync.WaitGroup
		for range stores {
			s, _ := open(t, opt, table)
			wg.Go(func() {
				var fns []func(*store.Tx) error
				for range each {
					fns = append(fns, func(tx *store.Tx) error {
						e, _ := table.Get(tx, "n")
						table.Put(tx, "n", e.Value+1)
						return nil
					})
				}
				for _, err := range s.UpdateAll(t.Context(), fns) {
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		s, _ := open(t, opt, table)
		e, _ := table.Get(s.Snapshot(), "n")
		// Each update has its own sequence number, so a version identifies one value.
		if e.Value != stores*each || e.Version != stores*each {
			t.Errorf("value=%d version=%d, want %d", e.Value, e.Version, stores*each)
		}
	})
}

// TestCancelledUpdatesDoNotDisturbOthers ends the contexts of some updates. No function
// may run after its Update has returned, which the race detector would notice.
func TestCancelledUpdatesDoNotDisturbOthers(t *testing.T) {
	table := numbers("counters")
	k := newKV(t)
	a, _ := open(t, store.Options{KV: k}, table)
	b, _ := open(t, store.Options{KV: k}, table)
	var wg sync.WaitGroup
	var applied, unknown atomic.Int64
	for i := range 400 {
		s := a
		if i%2 == 0 {
			s = b
		}
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			runs := 0
			if i%3 == 0 {
				go cancel()
			}
			err := s.Update(ctx, func(tx *store.Tx) error {
				runs++
				e, _ := table.Get(tx, "n")
				table.Put(tx, "n", e.Value+1)
				return nil
			})
			runs++
			cancel()
			switch {
			case err == nil:
				applied.Add(1)
			case errors.Is(err, store.ErrOutcomeUnknown):
				unknown.Add(1)
			case !errors.Is(err, context.Canceled):
				t.Error(err)
			}
			if err != nil && i%3 != 0 {
				t.Errorf("error of an update that was not cancelled: %v", err)
			}
		})
	}
	wg.Wait()
	// One more update in each store ensures that earlier commits have arrived.
	for _, s := range []*store.Store{a, b} {
		update(t, s, func(tx *store.Tx) {
			e, _ := table.Get(tx, "n")
			table.Put(tx, "n", e.Value+1)
		})
	}
	e, _ := table.Get(b.Snapshot(), "n")
	if n := int64(e.Value) - 2; n < applied.Load() || n > applied.Load()+unknown.Load() {
		t.Errorf("counter = %d, but %d updates succeeded and %d have an unknown outcome", n, applied.Load(), unknown.Load())
	}
}
