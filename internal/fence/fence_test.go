package fence_test

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"testing/synctest"

	"go.uber.org/zap"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/fence"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

const shard = 3

// replica is one replica of a daemon, with a store of its own.
type replica struct {
	t      *testing.T
	store  *store.Store
	fences *fence.Fences
	// held counts how often the replica has acquired the fence, and lost how often it lost
	// it.
	held, lost int
}

func start(t *testing.T, space kv.KV, name string) *replica {
	t.Helper()
	tables := state.NewTables()
	s, err := store.New(store.Options{KV: space, Prefix: "muster"}, tables.AllocatorFences)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() {
		cancel()
		synctest.Wait()
	})
	go func() { _ = s.Run(ctx) }()
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return &replica{t: t, store: s, fences: fence.New(fence.Config{
		Holder: name, Log: zap.NewNop(), Tables: []store.TableDef{tables.AllocatorFences}, Read: func(*store.Tx, int) {},
		Get: func(r store.Reader, shard int) fence.Record {
			e, _ := tables.AllocatorFences.Get(r, strconv.Itoa(shard))
			return fence.Record{Holder: e.Value.GetHolder(), Term: e.Value.GetTerm()}
		},
		Put: func(tx *store.Tx, shard int, r fence.Record) {
			tables.AllocatorFences.Put(tx, strconv.Itoa(shard), &recordv1.AllocatorFence{Holder: r.Holder, Term: r.Term})
		},
	})}
}

// hold holds the shard until stop is called.
func (r *replica) hold() (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	go func() {
		if err := r.fences.Hold(ctx, r.store, shard, func() { r.held++ }, func() { r.lost++ }); err != nil && ctx.Err() == nil {
			r.t.Error(err)
		}
	}()
	synctest.Wait()
	return func() { cancel(); synctest.Wait() }
}

// decides reports whether a decision of the replica is committed.
func (r *replica) decides() bool {
	r.t.Helper()
	err := r.store.Update(r.t.Context(), func(tx *store.Tx) error { return r.fences.Check(tx, shard) })
	if err != nil && !errors.Is(err, fence.ErrFenced) {
		r.t.Fatal(err)
	}
	return err == nil
}

// TestOnlyReplicaThatAcquiredLastDecides has a second replica acquire the fence while the
// first believes that it holds the shard.
func TestOnlyReplicaThatAcquiredLastDecides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		space, err := embedded.Open(embedded.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = space.Close() })
		a, b := start(t, space, "a"), start(t, space, "b")
		if a.decides() {
			t.Error("a replica decides before it has acquired the fence")
		}
		stop := a.hold()
		if !a.decides() || b.decides() {
			t.Error("the replica that acquired the fence does not decide alone")
		}
		stopB := b.hold()
		if a.decides() || !b.decides() || a.lost != 1 {
			t.Errorf("after the second replica acquired the fence: first lost it %d times, want once, and must not decide", a.lost)
		}
		stop()
		b.fences.Invalidate(shard)
		if b.decides() {
			t.Error("a replica decides whose fence was invalidated")
		}
		stopB()
		if b.lost != b.held {
			t.Errorf("the second replica acquired the fence %d times and lost it %d times", b.held, b.lost)
		}
	})
}
