package kvtest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/musterhq/muster/internal/kv"
)

// testModel compares random transactions with what a plain map does.
func testModel(t *testing.T, f *fixture) {
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		g := &fixture{KV: f.KV, ctx: f.ctx, prefix: fmt.Sprintf("%s%d/", f.prefix, run)}
		want := map[string]string{}
		index := map[string]uint64{}
		for range rapid.IntRange(1, 6).Draw(rt, "transactions") {
			ops := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) kv.Op {
				name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "key")
				verb := kv.Verb(rapid.IntRange(int(kv.Get), int(kv.CheckIndex)).Draw(rt, "verb"))
				at := rapid.SampledFrom([]uint64{0, index[name], 1 << 40}).Draw(rt, "index")
				return g.op(verb, name, rapid.StringMatching("[a-z]{1,3}").Draw(rt, "value"), at)
			}), 1, 4).Draw(rt, "ops")
			// An operation on a key that this transaction has written already would
			// need the index of a transaction that is under way.
			touched := map[string]bool{}
			for _, op := range ops {
				if touched[op.Key] {
					return
				}
				touched[op.Key] = true
			}
			next, ok := applyModel(want, index, ops, len(g.prefix))
			_, err := g.Txn(g.ctx, ops)
			if ok != (err == nil) || (!ok && !errors.Is(err, kv.ErrConflict)) {
				rt.Fatalf("Txn(%+v) error = %v, the model says ok = %v", ops, err, ok)
			}
			if ok {
				want = next
			}
			pairs, _ := g.list(t)
			index = map[string]uint64{}
			for _, p := range pairs {
				index[p.Key[len(g.prefix):]] = p.Index
			}
			if diff := cmp.Diff(want, g.contents(t)); diff != "" {
				rt.Fatalf("after %+v (-want +got):\n%s", ops, diff)
			}
		}
	})
}

func applyModel(now map[string]string, index map[string]uint64, ops []kv.Op, prefix int) (map[string]string, bool) {
	next := map[string]string{}
	for k, v := range now {
		next[k] = v
	}
	for _, op := range ops {
		name := op.Key[prefix:]
		switch op.Verb {
		case kv.CAS, kv.CheckIndex:
			if index[name] != op.Index {
				return nil, false
			}
		case kv.DeleteCAS:
			if _, exists := now[name]; exists && index[name] != op.Index {
				return nil, false
			}
		}
		switch op.Verb {
		case kv.Set, kv.CAS:
			next[name] = string(op.Value)
		case kv.Delete, kv.DeleteCAS:
			delete(next, name)
		}
	}
	return next, true
}

// register is one step of a history: read if write is "", else a write that
// holds only if the register was as the reader had read it.
type register struct {
	write, expect string
}

type outcome struct {
	value string
	ok    bool
}

// testLinearizable lets clients read and compare-and-set one key at the same
// time and checks that what they saw fits some order (porcupine).
func testLinearizable(t *testing.T, f *fixture) {
	model := porcupine.Model{
		Init: func() any { return "" },
		Step: func(state, input, output any) (bool, any) {
			now, in, out := state.(string), input.(register), output.(outcome)
			if in.write == "" {
				return out.value == now, now
			}
			if out.ok {
				return now == in.expect, in.write
			}
			return now != in.expect, now
		},
	}
	var (
		mu      sync.Mutex
		history []porcupine.Operation
		wg      sync.WaitGroup
	)
	began := time.Now()
	note := func(client int, in register, out outcome, call time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		history = append(history, porcupine.Operation{
			ClientId: client, Input: in, Output: out, Call: call.Nanoseconds(), Return: time.Since(began).Nanoseconds(),
		})
	}
	const clients, rounds = 5, 30
	for c := range clients {
		wg.Go(func() {
			for r := range rounds {
				call := time.Since(began)
				p, err := f.Get(f.ctx, f.key("register"))
				if err != nil && !errors.Is(err, kv.ErrNotFound) {
					t.Errorf("Get: %v", err)
					return
				}
				note(c, register{}, outcome{value: string(p.Value)}, call)
				in := register{write: fmt.Sprintf("%d.%d", c, r), expect: string(p.Value)}
				call = time.Since(began)
				_, err = f.Txn(f.ctx, []kv.Op{f.op(kv.CAS, "register", in.write, p.Index)})
				if err != nil && !errors.Is(err, kv.ErrConflict) {
					t.Errorf("Txn: %v", err)
					return
				}
				note(c, in, outcome{ok: err == nil}, call)
			}
		})
	}
	wg.Wait()
	if result := porcupine.CheckOperationsTimeout(model, history, patience); result != porcupine.Ok {
		t.Errorf("history of %d operations is not linearizable: %s", len(history), result)
	}
}
