package dispatcherd

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/networks"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	testwait "github.com/musterhq/muster/test/kit/wait"
)

func (w *worker) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.model.Tasks)
}

func (w *worker) isWelcome() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.welcome != nil
}

// fleet connects so many workers, ten to a connection.
func fleet(b *testing.B, c *cluster, d *replica, n int) []*worker {
	b.Helper()
	testwait.True(b, "shards", func() bool { return len(d.owned.all()) == store.Shards })
	var conn *grpc.ClientConn
	workers := make([]*worker, n)
	for i := range workers {
		if i%10 == 0 {
			conn = c.dial(d.address)
		}
		node := fmt.Sprintf("n%d", i)
		workers[i] = c.newWorker(node, conn)
		workers[i].hello(&dispatcherv1.Hello{NodeId: node, InstanceId: "1", Description: description(node)})
	}
	for _, w := range workers {
		testwait.True(b, "welcome", w.isWelcome)
	}
	return workers
}

const (
	benchNodes = 100
	benchTasks = 10_000
)

// assignAll writes 10,000 tasks over 100 nodes, and returns when they are in
// the store.
func assignAll(b *testing.B, c *cluster, round int) {
	b.Helper()
	var updates []func(*store.Tx) error
	service := fmt.Sprintf("s%d", round)
	c.service(service)
	for node := range benchNodes {
		updates = append(updates, func(tx *store.Tx) error {
			for i := range benchTasks / benchNodes {
				slot := uint64(node*benchTasks/benchNodes + i + 1)
				c.assign(tx, fmt.Sprintf("n%d", node), service, fmt.Sprintf("%s-t%d", service, slot), slot)
			}
			return nil
		})
	}
	for _, err := range c.store.UpdateAll(b.Context(), updates) {
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFanOut writes 10,000 assignments and waits until 100 workers have
// them all. The dispatcher follows the store through the kv, as in production.
func BenchmarkFanOut(b *testing.B) {
	var after time.Duration
	for b.Loop() {
		b.StopTimer()
		c := newCluster(b, true)
		d := c.dispatcher("d1")
		workers := fleet(b, c, d, benchNodes)
		b.StartTimer()
		assignAll(b, c, 0)
		written := time.Now()
		for _, w := range workers {
			testwait.True(b, "tasks", func() bool { return w.count() == benchTasks/benchNodes })
		}
		after += time.Since(written)
		b.StopTimer()
		for _, w := range workers {
			w.cancel()
		}
		d.stop()
		b.StartTimer()
	}
	b.ReportMetric(float64(after.Milliseconds())/float64(b.N), "ms-after-write/op")
}

// BenchmarkStatuses reports 10,000 statuses from 100 workers and waits for the
// acknowledgements: all are in the store then.
func BenchmarkStatuses(b *testing.B) {
	c := newCluster(b, true)
	d := c.dispatcher("d1")
	workers := fleet(b, c, d, benchNodes)
	assignAll(b, c, 0)
	for _, w := range workers {
		testwait.True(b, "tasks", func() bool { return w.count() == benchTasks/benchNodes })
	}
	sequence := uint64(0)
	b.ResetTimer()
	for b.Loop() {
		sequence++
		var wg sync.WaitGroup
		for _, w := range workers {
			wg.Go(func() {
				var statuses []*dispatcherv1.ReportedStatus
				for id := range w.model.Tasks {
					// Of one state the later word counts, so each round writes all again.
					statuses = append(statuses, reported(id, musterv1.TaskState_RUNNING, int64(sequence), fmt.Sprint(sequence)))
				}
				w.report(sequence, statuses...)
			})
		}
		wg.Wait()
		for _, w := range workers {
			testwait.True(b, "acknowledgement", func() bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.acked == sequence
			})
		}
	}
	b.ReportMetric(float64(b.N*benchTasks)/b.Elapsed().Seconds(), "statuses/s")
}

// BenchmarkIdleWorker measures what a worker costs that only lives: memory and
// goroutines of both ends of its session, and the time of a heartbeat.
func BenchmarkIdleWorker(b *testing.B) {
	const n = 2000
	c := newCluster(b, true)
	d := c.dispatcher("d1")
	testwait.True(b, "shards", func() bool { return len(d.owned.all()) == store.Shards })
	var before, with runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()
	workers := fleet(b, c, d, n)
	runtime.GC()
	runtime.ReadMemStats(&with)
	goroutines = runtime.NumGoroutine() - goroutines
	i := 0
	for b.Loop() {
		workers[i%n].heartbeat()
		i++
	}
	b.ReportMetric(float64(goroutines)/n, "goroutines/worker")
	b.ReportMetric(float64(with.HeapInuse+with.StackInuse-before.HeapInuse-before.StackInuse)/n, "B/worker")
}

// BenchmarkComplete makes the complete set of a node with 1,000 tasks.
func BenchmarkComplete(b *testing.B) {
	c := newCluster(b, true)
	c.service("s1")
	c.update(func(tx *store.Tx) {
		for i := range 1000 {
			c.assign(tx, "n1", "s1", fmt.Sprintf("t%d", i), uint64(i+1))
		}
	})
	reader := assignments.NewReader(c.tables, networks.New(c.tables, nil), nil)
	snap := c.store.Snapshot()
	b.ReportAllocs()
	for b.Loop() {
		sent := assignments.NewSent(assignments.Protocol)
		if got := sent.Complete(reader.Offers(snap, "n1"), nil, limits); len(got[0].Objects) != 1001 {
			b.Fatal(len(got[0].Objects))
		}
	}
}

// BenchmarkChange tells a node with 1,000 tasks of the change of one.
func BenchmarkChange(b *testing.B) {
	c := newCluster(b, true)
	c.service("s1")
	c.update(func(tx *store.Tx) {
		for i := range 1000 {
			c.assign(tx, "n1", "s1", fmt.Sprintf("t%d", i), uint64(i+1))
		}
	})
	reader := assignments.NewReader(c.tables, networks.New(c.tables, nil), nil)
	sent := assignments.NewSent(assignments.Protocol)
	sent.Complete(reader.Offers(c.store.Snapshot(), "n1"), nil, limits)
	key := state.NodeTaskKey("n1", "s1", "t5")
	changed := []musterv1.TaskState{musterv1.TaskState_SHUTDOWN, musterv1.TaskState_REMOVE}
	var offers [2]assignments.Offer
	for i, desired := range changed {
		c.desire("n1", "s1", "t5", 6, desired)
		offers[i] = reader.Offer(c.store.Snapshot(), key)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if got := sent.Changes(offers[i%2:i%2+1], nil, limits, time.Now()); len(got) != 1 {
			b.Fatal(len(got))
		}
	}
}

// limits are those of a message in benchmarks.
var limits = assignments.Limits{Objects: 1000, Bytes: 1 << 20}
