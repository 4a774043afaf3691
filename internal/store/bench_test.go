package store_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/prometheus/client_golang/prometheus"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/test/kit/consultest"
)

// onBoth runs a benchmark on the embedded kv and on a Consul server on disk.
func onBoth(b *testing.B, run func(b *testing.B, k kv.KV)) {
	b.Run("kv=embedded", func(b *testing.B) { run(b, newKV(b)) })
	b.Run("kv=consul", func(b *testing.B) { run(b, consultest.Start(b).KV(b)) })
}

func statuses() *store.Table[*recordv1.Status] {
	return store.NewTable("statuses", store.Proto(func() *recordv1.Status { return new(recordv1.Status) }))
}

func randomID() string {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyz"
	id := make([]byte, 25)
	for i := range id {
		id[i] = digits[rand.IntN(36)]
	}
	return string(id)
}

func randomIDs(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = randomID()
	}
	return ids
}

// taskKeys returns keys of n tasks of a service each ten, spread over nodes.
func taskKeys(n int) []string {
	nodes, services := randomIDs(max(n/20, 1)), randomIDs(max(n/100, 1))
	keys := make([]string, n)
	for i := range keys {
		keys[i] = nodes[i%len(nodes)] + "/" + services[i%len(services)] + "/" + randomID()
	}
	return keys
}

func status(state musterv1.TaskState) *recordv1.Status {
	now := time.Now().UnixNano()
	return &recordv1.Status{State: state, At: now, AppliedAt: now, Message: "started",
		Reached: []musterv1.TaskState{state, state}, ReachedBefore: []int64{1, 0}}
}

func putAll(tb testing.TB, s *store.Store, t *store.Table[*recordv1.Status], keys []string, state musterv1.TaskState) {
	tb.Helper()
	fns := make([]func(*store.Tx) error, len(keys))
	for i, k := range keys {
		fns[i] = func(tx *store.Tx) error { t.Put(tx, k, status(state)); return nil }
	}
	for _, err := range s.UpdateAll(tb.Context(), fns) {
		if err != nil {
			tb.Fatal(err)
		}
	}
}

var sizes = []int{1_000, 10_000, 100_000}

// BenchmarkLoad is the time until a new store is ready.
func BenchmarkLoad(b *testing.B) {
	onBoth(b, func(b *testing.B, k kv.KV) {
		for _, n := range sizes {
			b.Run(fmt.Sprintf("records=%d", n), func(b *testing.B) {
				t := statuses()
				opt := store.Options{KV: k, Prefix: fmt.Sprintf("load%d", n)}
				s, stop := open(b, opt, t)
				putAll(b, s, t, taskKeys(n), musterv1.TaskState_RUNNING)
				stop()
				b.ReportAllocs()
				for b.Loop() {
					_, stop := open(b, opt, t)
					b.StopTimer()
					stop()
					b.StartTimer()
				}
			})
		}
	})
}

// BenchmarkCommitOne is the time of one update of one record in a table of n.
func BenchmarkCommitOne(b *testing.B) {
	onBoth(b, func(b *testing.B, k kv.KV) {
		for _, n := range sizes {
			b.Run(fmt.Sprintf("records=%d", n), func(b *testing.B) {
				t := statuses()
				s, stop := open(b, store.Options{KV: k, Prefix: fmt.Sprintf("one%d", n)}, t)
				defer stop()
				keys := taskKeys(n)
				putAll(b, s, t, keys, musterv1.TaskState_STARTING)
				b.ReportAllocs()
				for b.Loop() {
					k := keys[rand.IntN(n)]
					if err := s.Update(b.Context(), func(tx *store.Tx) error {
						t.Put(tx, k, status(musterv1.TaskState_RUNNING))
						return nil
					}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	})
}

// BenchmarkCommitAll is the time to change n records, each by an update of its
// own, in a table of n, seen to the end by another store.
func BenchmarkCommitAll(b *testing.B) {
	onBoth(b, func(b *testing.B, k kv.KV) {
		for _, n := range sizes {
			for _, page := range []int{4 << 10, 8 << 10, 12 << 10, 16 << 10, 32 << 10} {
				b.Run(fmt.Sprintf("records=%d/page=%dk", n, page>>10), func(b *testing.B) {
					t := statuses()
					opt := store.Options{KV: k, Prefix: fmt.Sprintf("all%d-%d", n, page), MaxPage: page}
					s, stop := open(b, opt, t)
					defer stop()
					other, stopOther := open(b, opt, t)
					defer stopOther()
					keys := taskKeys(n)
					putAll(b, s, t, keys, musterv1.TaskState_STARTING)
					for b.Loop() {
						putAll(b, s, t, keys, musterv1.TaskState_RUNNING)
						follow(b, s, other, t)
					}
				})
			}
		}
	})
}

// follow waits until other has come as far as s.
func follow(tb testing.TB, s, other *store.Store, t *store.Table[*recordv1.Status]) {
	tb.Helper()
	want := t.Sequences(s.Snapshot())
	sn := other.Snapshot()
	for {
		done := true
		for i, seq := range t.Sequences(sn) {
			done = done && seq >= want[i]
		}
		if done {
			return
		}
		var err error
		if sn, err = other.Wait(tb.Context(), sn, t); err != nil {
			tb.Fatal(err)
		}
	}
}

// BenchmarkWatch is the time from the begin of an update of one record in one
// store until another store shows it.
func BenchmarkWatch(b *testing.B) {
	onBoth(b, func(b *testing.B, k kv.KV) {
		for _, n := range sizes {
			b.Run(fmt.Sprintf("records=%d", n), func(b *testing.B) {
				t := statuses()
				opt := store.Options{KV: k, Prefix: fmt.Sprintf("watch%d", n)}
				s, stop := open(b, opt, t)
				defer stop()
				other, stopOther := open(b, opt, t)
				defer stopOther()
				keys := taskKeys(n)
				putAll(b, s, t, keys, musterv1.TaskState_STARTING)
				follow(b, s, other, t)
				ctx, cancel := context.WithCancel(b.Context())
				defer cancel()
				for b.Loop() {
					k := keys[rand.IntN(n)]
					if err := s.Update(ctx, func(tx *store.Tx) error {
						t.Put(tx, k, status(musterv1.TaskState_RUNNING))
						return nil
					}); err != nil {
						b.Fatal(err)
					}
					follow(b, s, other, t)
				}
			})
		}
	})
}

// BenchmarkContention is the time in which several stores together change all
// of 4,000 records, each store its part of them, with the parts in the same
// shards and pages. The parts are cut by hash, as replicas share out services
// while the table is sharded by node.
func BenchmarkContention(b *testing.B) {
	const n = 4_000
	onBoth(b, func(b *testing.B, k kv.KV) {
		for _, stores := range []int{1, 2, 4} {
			b.Run(fmt.Sprintf("stores=%d", stores), func(b *testing.B) {
				t := statuses()
				opt := store.Options{KV: k, Prefix: fmt.Sprintf("contention%d", stores)}
				var all []*store.Store
				metrics := prometheus.NewRegistry()
				for i := range stores {
					opt.Metrics = prometheus.WrapRegistererWith(prometheus.Labels{"store": strconv.Itoa(i)}, metrics)
					s, stop := open(b, opt, t)
					defer stop()
					all = append(all, s)
				}
				keys := taskKeys(n)
				putAll(b, all[0], t, keys, musterv1.TaskState_STARTING)
				for b.Loop() {
					var wg sync.WaitGroup
					for i, s := range all {
						wg.Go(func() {
							var mine []string
							for j := i; j < n; j += stores {
								mine = append(mine, keys[j])
							}
							putAll(b, s, t, mine, musterv1.TaskState_RUNNING)
						})
					}
					wg.Wait()
				}
				families, err := metrics.Gather()
				if err != nil {
					b.Fatal(err)
				}
				for _, f := range families {
					if f.GetName() != "muster_store_commit_conflicts_total" {
						continue
					}
					conflicts := 0.0
					for _, m := range f.Metric {
						conflicts += m.Counter.GetValue()
					}
					b.ReportMetric(conflicts/float64(b.N), "conflicts/op")
				}
			})
		}
	})
}
