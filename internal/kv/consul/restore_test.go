package consul_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/test/kit/consultest"
)

// TestListSeesARestore takes Consul back in time while a list waits: it ends, and
// shows what there is now, with the index of then.
func TestListSeesARestore(t *testing.T) {
	t.Parallel()
	server := consultest.Start(t)
	s := server.KV(t)
	first := untilDone(t, s, "restore/a")
	var snapshot bytes.Buffer
	if err := server.Save(t.Context(), &snapshot); err != nil {
		t.Fatal(err)
	}
	untilDone(t, s, "restore/b")
	pairs, index, err := s.List(t.Context(), "restore/", kv.ListOptions{})
	if err != nil || len(pairs) != 2 {
		t.Fatalf("List = %v, %v", pairs, err)
	}
	type listed struct {
		pairs []kv.Pair
		index uint64
		err   error
	}
	woken := make(chan listed, 1)
	go func() {
		for {
			var l listed
			l.pairs, l.index, l.err = s.List(t.Context(), "restore/", kv.ListOptions{After: index, Stale: true})
			if l.err != nil || l.index != index {
				woken <- l
				return
			}
		}
	}()
	if err := server.Restore(t.Context(), snapshot.Bytes()); err != nil {
		t.Fatal(err)
	}
	select {
	case l := <-woken:
		if l.err != nil || len(l.pairs) != 1 || l.pairs[0].Key != first.Key || l.index >= index {
			t.Errorf("List = %v, index %d (it was %d), %v; want the first key alone", l.pairs, l.index, index, l.err)
		}
	case <-time.After(patience):
		t.Error("a list that waits does not notice that Consul was restored")
	}
	if next := untilDone(t, s, "restore/c"); next.Index <= index {
		t.Errorf("index %d after the restore, %d before it", next.Index, index)
	}
}
