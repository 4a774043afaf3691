package sweep_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/backend/backendtest"
	"github.com/musterhq/muster/apid/sweep"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// put writes records.
func put(t *testing.T, b *backend.Backend, fn func(tx *store.Tx)) {
	t.Helper()
	if err := b.Update(t.Context(), func(tx *store.Tx) error { fn(tx); return nil }); err != nil {
		t.Fatal(err)
	}
}

// sweepOften starts a sweeper, and returns how many rounds it has made.
func sweepOften(t *testing.T, b *backend.Backend) (rounds func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	n := 0
	s := sweep.New(b, sweep.Options{Interval: 10 * time.Second, SpecGrace: time.Minute, TombstoneGrace: time.Hour, Also: func(context.Context) {
		mu.Lock()
		defer mu.Unlock()
		n++
	}})
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

// has reports whether the newest snapshot has a record.
func has[T any](b *backend.Backend, table *store.Table[T], key string) bool {
	_, ok := table.Get(b.Snapshot(), key)
	return ok
}

func TestSweepRemovesDataAfterItsGrace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := backendtest.Start(t)
		used, orphan := state.BlobDigest([]byte("used")), state.BlobDigest([]byte("orphan"))
		now := time.Now().UnixMilli()
		put(t, b, func(tx *store.Tx) {
			for _, digest := range [][]byte{used, orphan} {
				b.Tables.Blobs.Put(tx, state.BlobKey(digest), &recordv1.Blob{Size: 1, UsedAt: now})
				b.Tables.Blobs.Put(tx, state.ChunkKey(digest, 0), &recordv1.Blob{Data: []byte("x")})
			}
			b.Tables.Configs.Put(tx, "c", &recordv1.Config{Spec: &musterv1.ConfigSpec{Name: "c"}, Digest: used, Size: 1})
		})
		rounds := sweepOften(t, b)
		time.Sleep(time.Minute)
		synctest.Wait()
		if !has(b, b.Tables.Blobs, state.ChunkKey(orphan, 0)) {
			t.Error("data is removed within its grace")
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if has(b, b.Tables.Blobs, state.BlobKey(orphan)) || has(b, b.Tables.Blobs, state.ChunkKey(orphan, 0)) {
			t.Error("data that nothing refers to is still there")
		}
		if !has(b, b.Tables.Blobs, state.BlobKey(used)) || !has(b, b.Tables.Blobs, state.ChunkKey(used, 0)) {
			t.Error("data of a config is removed")
		}
		if n := rounds(); n < 15 {
			t.Errorf("%d rounds in 3 minutes, want one each 10 s", n)
		}
	})
}

// TestOneRoundRemovesAllThatIsDue has far more unused records of each kind than one
// transaction can remove.
func TestOneRoundRemovesAllThatIsDue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := backendtest.Start(t)
		const blobs, chunks, specs, removed = 40, 8, 300, 300
		began := time.Now()
		now := began.UnixMilli()
		for i := range blobs {
			digest := state.BlobDigest(fmt.Append(nil, i))
			put(t, b, func(tx *store.Tx) {
				b.Tables.Blobs.Put(tx, state.BlobKey(digest), &recordv1.Blob{Size: 1, UsedAt: now})
				for chunk := range chunks {
					// Each has a page of its own.
					b.Tables.Blobs.Put(tx, state.ChunkKey(digest, chunk), &recordv1.Blob{Data: make([]byte, store.DefaultMaxPage+1)})
				}
			})
		}
		for i := range specs {
			put(t, b, func(tx *store.Tx) {
				b.Tables.Specs.Put(tx, state.SpecKey(state.BlobDigest(fmt.Append(nil, i))), &recordv1.Spec{CreatedAt: now})
			})
		}
		for i := range removed {
			put(t, b, func(tx *store.Tx) {
				b.Tables.Nodes.Put(tx, fmt.Sprint("node-", i), &recordv1.Node{Removed: true, UpdatedAt: now - time.Hour.Milliseconds()})
				b.Tables.Names.Put(tx, state.RemovedNameKey(fmt.Sprint("service-", i)), &recordv1.Name{RemovedAt: now})
			})
		}
		left := func() int {
			return count(b, b.Tables.Blobs) + count(b, b.Tables.Specs) + count(b, b.Tables.Nodes) + count(b, b.Tables.Names)
		}
		if n := left(); n != blobs*(chunks+1)+specs+2*removed {
			t.Fatalf("%d records to begin with", n)
		}
		sweepOften(t, b)
		// Blobs and specs are due when they have been old enough for another minute.
		time.Sleep(2*time.Minute + 5*time.Second - time.Since(began))
		synctest.Wait()
		if n := left(); n > 0 {
			t.Errorf("%d records are left after the round in which all were due", n)
		}
	})
}

// count returns how many records a table has.
func count[T any](b *backend.Backend, table *store.Table[T]) (n int) {
	for range table.Scan(b.Snapshot(), "") {
		n++
	}
	return n
}

func TestSweepForgetsRemovedNodesAfterTheirCertificateAndAssignments(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := backendtest.Start(t)
		now := time.Now()
		put(t, b, func(tx *store.Tx) {
			b.Tables.Nodes.Put(tx, "gone", &recordv1.Node{Removed: true, UpdatedAt: now.UnixMilli()})
			b.Tables.Nodes.Put(tx, "certified", &recordv1.Node{Removed: true, UpdatedAt: now.UnixMilli(), CertificateEnds: now.Add(3 * time.Hour).UnixMilli()})
			b.Tables.Nodes.Put(tx, "assigned", &recordv1.Node{Removed: true, UpdatedAt: now.UnixMilli()})
			b.Tables.Assignments.Put(tx, "assigned/s/t", &recordv1.Assignment{})
			b.Tables.Nodes.Put(tx, "kept", &recordv1.Node{UpdatedAt: now.UnixMilli()})
		})
		sweepOften(t, b)
		check := func(after time.Duration, want map[string]bool) {
			t.Helper()
			time.Sleep(after - time.Since(now))
			synctest.Wait()
			for node, there := range want {
				if has(b, b.Tables.Nodes, node) != there {
					t.Errorf("after %v: node %s is there: %v, want %v", after, node, !there, there)
				}
			}
		}
		check(59*time.Minute, map[string]bool{"gone": true, "certified": true, "assigned": true, "kept": true})
		check(61*time.Minute, map[string]bool{"gone": false, "certified": true, "assigned": true, "kept": true})
		check(4*time.Hour, map[string]bool{"gone": false, "certified": false, "assigned": true, "kept": true})
		put(t, b, func(tx *store.Tx) { b.Tables.Assignments.Delete(tx, "assigned/s/t") })
		check(5*time.Hour, map[string]bool{"gone": false, "certified": false, "assigned": false, "kept": true})
	})
}
