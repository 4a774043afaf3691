// Package kvtest holds the conformance suite that every kv.KV passes.
package kvtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/internal/kv"
)

// patience bounds every wait of the suite.
const patience = time.Minute

// Run runs the suite. Open returns a key space that may hold other keys and is
// closed by the caller; each test works under a prefix of its own.
func Run(t *testing.T, open func(t *testing.T) kv.KV) {
	tests := map[string]func(*testing.T, *fixture){
		"Get":                testGet,
		"CAS":                testCAS,
		"Delete":             testDelete,
		"Checks":             testChecks,
		"Atomicity":          testAtomicity,
		"Results":            testResults,
		"List":               testList,
		"ListBlocks":         testListBlocks,
		"ListSeesDeletion":   testListSeesDeletion,
		"ListLosesNothing":   testListLosesNothing,
		"ListsApart":         testListsApart,
		"IndexGrows":         testIndexGrows,
		"SameValue":          testSameValue,
		"Contexts":           testContexts,
		"Values":             testValues,
		"ValuesAreNotShared": testValuesAreNotShared,
		"Limits":             testLimits,
		"Malformed":          testMalformed,
		"Locks":              testLocks,
		"LocksExclude":       testLocksExclude,
		"LocksAndLists":      testLocksAndLists,
		"LocksAndWrites":     testLocksAndWrites,
		"SessionEnd":         testSessionEnd,
		"Describe":           testDescribe,
		"Model":              testModel,
		"Linearizable":       testLinearizable,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			test(t, &fixture{KV: open(t), ctx: ctx, prefix: fmt.Sprintf("kvtest/%s/%d/", name, time.Now().UnixNano())})
		})
	}
}

// fixture is a key space, and a part of it that no other test uses.
type fixture struct {
	kv.KV
	ctx    context.Context
	prefix string
}

func (f *fixture) key(name string) string { return f.prefix + name }

func (f *fixture) op(verb kv.Verb, name, value string, index uint64) kv.Op {
	return kv.Op{Verb: verb, Key: f.key(name), Value: []byte(value), Index: index}
}

func (f *fixture) txn(t testing.TB, ops ...kv.Op) []kv.Pair {
	t.Helper()
	pairs, err := f.Txn(f.ctx, ops)
	if err != nil {
		t.Fatalf("Txn: %v", err)
	}
	return pairs
}

// refused checks that a transaction conflicts.
func (f *fixture) refused(t testing.TB, ops ...kv.Op) {
	t.Helper()
	if _, err := f.Txn(f.ctx, ops); !errors.Is(err, kv.ErrConflict) {
		t.Fatalf("Txn error = %v, want one of class ErrConflict", err)
	}
}

func (f *fixture) get(t testing.TB, name string) kv.Pair {
	t.Helper()
	p, err := f.Get(f.ctx, f.key(name))
	if err != nil {
		t.Fatalf("Get(%q): %v", name, err)
	}
	return p
}

func (f *fixture) list(t testing.TB) ([]kv.Pair, uint64) {
	t.Helper()
	pairs, index, err := f.List(f.ctx, f.prefix, kv.ListOptions{})
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	return pairs, index
}

// contents is what lies under the fixture's prefix.
func (f *fixture) contents(t testing.TB) map[string]string {
	t.Helper()
	pairs, _ := f.list(t)
	m := map[string]string{}
	for _, p := range pairs {
		m[p.Key[len(f.prefix):]] = string(p.Value)
	}
	return m
}

func testGet(t *testing.T, f *fixture) {
	if _, err := f.Get(f.ctx, f.key("a")); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("Get of a missing key: error = %v, want ErrNotFound", err)
	}
	f.txn(t, f.op(kv.Set, "a", "1", 0))
	first := f.get(t, "a")
	if string(first.Value) != "1" || first.Index == 0 || first.Key != f.key("a") || first.Session != "" {
		t.Errorf("Get = %+v, want key a, value 1, an index, no session", first)
	}
	f.txn(t, f.op(kv.Set, "a", "2", 0))
	if second := f.get(t, "a"); second.Index <= first.Index {
		t.Errorf("index went from %d to %d, want it to grow", first.Index, second.Index)
	}
}

func testCAS(t *testing.T, f *fixture) {
	f.refused(t, f.op(kv.CAS, "a", "x", 99))
	f.txn(t, f.op(kv.CAS, "a", "1", 0))
	f.refused(t, f.op(kv.CAS, "a", "x", 0))
	p := f.get(t, "a")
	f.txn(t, f.op(kv.CAS, "a", "2", p.Index))
	f.refused(t, f.op(kv.CAS, "a", "x", p.Index))
	if diff := cmp.Diff(map[string]string{"a": "2"}, f.contents(t)); diff != "" {
		t.Errorf("contents (-want +got):\n%s", diff)
	}
}

func testDelete(t *testing.T, f *fixture) {
	f.txn(t, f.op(kv.Delete, "a", "", 0))
	f.txn(t, f.op(kv.Set, "a", "1", 0), f.op(kv.Set, "b", "1", 0))
	p := f.get(t, "a")
	f.refused(t, f.op(kv.DeleteCAS, "a", "", p.Index+1))
	f.refused(t, f.op(kv.DeleteCAS, "a", "", 0))
	f.txn(t, f.op(kv.DeleteCAS, "a", "", p.Index), f.op(kv.Delete, "b", "", 0))
	// What is gone already is no conflict, whatever its index was.
	f.txn(t, f.op(kv.DeleteCAS, "a", "", p.Index), f.op(kv.DeleteCAS, "b", "", 0))
	if got := f.contents(t); len(got) != 0 {
		t.Errorf("contents = %v, want none", got)
	}
	// A key that was there and is gone can be created again.
	f.txn(t, f.op(kv.CAS, "a", "2", 0))
}

func testChecks(t *testing.T, f *fixture) {
	f.txn(t, f.op(kv.CheckIndex, "a", "", 0), f.op(kv.Set, "b", "1", 0))
	f.refused(t, f.op(kv.CheckIndex, "b", "", 0), f.op(kv.Set, "c", "1", 0))
	p := f.get(t, "b")
	f.txn(t, f.op(kv.CheckIndex, "b", "", p.Index), f.op(kv.Set, "c", "1", 0))
	f.refused(t, f.op(kv.CheckIndex, "b", "", p.Index+1), f.op(kv.Set, "c", "2", 0))
	if diff := cmp.Diff(map[string]string{"b": "1", "c": "1"}, f.contents(t)); diff != "" {
		t.Errorf("contents (-want +got):\n%s", diff)
	}
}

func testAtomicity(t *testing.T, f *fixture) {
	f.txn(t, f.op(kv.Set, "a", "1", 0), f.op(kv.Set, "b", "1", 0))
	f.refused(t, f.op(kv.Set, "a", "2", 0), f.op(kv.Delete, "b", "", 0), f.op(kv.Set, "c", "2", 0), f.op(kv.CAS, "d", "x", 7))
	if diff := cmp.Diff(map[string]string{"a": "1", "b": "1"}, f.contents(t)); diff != "" {
		t.Errorf("after a refused transaction (-want +got):\n%s", diff)
	}
	if a, b := f.get(t, "a"), f.get(t, "b"); a.Index != b.Index {
		t.Errorf("one transaction gave indexes %d and %d", a.Index, b.Index)
	}
}

func testResults(t *testing.T, f *fixture) {
	f.txn(t, f.op(kv.Set, "a", "1", 0), f.op(kv.Set, "gone", "1", 0))
	a := f.get(t, "a")
	pairs := f.txn(t,
		f.op(kv.Get, "a", "", 0), f.op(kv.Get, "missing", "", 0), f.op(kv.CheckIndex, "missing", "", 0), f.op(kv.Delete, "gone", "", 0),
		f.op(kv.CheckIndex, "a", "", a.Index), f.op(kv.CAS, "a", "2", a.Index), f.op(kv.Set, "b", "3", 0))
	var got []string
	for _, p := range pairs {
		got = append(got, p.Key[len(f.prefix):]+"="+string(p.Value))
		if p.Index == 0 {
			t.Errorf("result %q has no index", p.Key)
		}
	}
	if diff := cmp.Diff([]string{"a=1", "a=", "b="}, got); diff != "" {
		t.Fatalf("results (-want +got):\n%s", diff)
	}
	if now := f.get(t, "a"); pairs[1].Index != now.Index {
		t.Errorf("CAS answered with index %d, the key has %d", pairs[1].Index, now.Index)
	}
}

func testList(t *testing.T, f *fixture) {
	f.txn(t, f.op(kv.Set, "b/2", "x", 0), f.op(kv.Set, "a", "x", 0), f.op(kv.Set, "b/1", "x", 0), f.op(kv.Set, "b/10", "x", 0))
	pairs, index, err := f.List(f.ctx, f.key("b/"), kv.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range pairs {
		got = append(got, p.Key[len(f.prefix):])
		if p.Index > index {
			t.Errorf("pair %q has index %d, beyond the list's %d", p.Key, p.Index, index)
		}
	}
	if diff := cmp.Diff([]string{"b/1", "b/10", "b/2"}, got); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
}

// await lists until see says that it is enough.
func (f *fixture) await(prefix string, after uint64, see func([]kv.Pair) bool) error {
	ctx, cancel := context.WithTimeout(f.ctx, patience)
	defer cancel()
	for {
		pairs, index, err := f.List(ctx, prefix, kv.ListOptions{After: after})
		if err != nil {
			return err
		}
		if see(pairs) {
			return nil
		}
		after = index
	}
}

func testListBlocks(t *testing.T, f *fixture) {
	f.txn(t, f.op(kv.Set, "a", "1", 0))
	_, index := f.list(t)
	woken := make(chan error, 1)
	go func() {
		woken <- f.await(f.prefix, index, func(pairs []kv.Pair) bool {
			return len(pairs) == 1 && string(pairs[0].Value) == "2"
		})
	}()
	f.txn(t, kv.Op{Verb: kv.Set, Key: f.prefix[:len(f.prefix)-1] + "-other", Value: []byte("x")})
	f.txn(t, f.op(kv.Set, "a", "2", 0))
	if err := <-woken; err != nil {
		t.Fatal(err)
	}
}

func testListSeesDeletion(t *testing.T, f *fixture) {
	f.txn(t, f.op(kv.Set, "a", "1", 0), f.op(kv.Set, "b", "1", 0))
	_, index := f.list(t)
	f.txn(t, f.op(kv.Delete, "a", "", 0))
	// The deletion came before the list: it must answer at once.
	if err := f.await(f.prefix, index, func(pairs []kv.Pair) bool { return len(pairs) == 1 }); err != nil {
		t.Fatal(err)
	}
	_, index = f.list(t)
	woken := make(chan error, 1)
	go func() {
		woken <- f.await(f.prefix, index, func(pairs []kv.Pair) bool { return len(pairs) == 0 })
	}()
	f.txn(t, f.op(kv.Delete, "b", "", 0))
	if err := <-woken; err != nil {
		t.Fatal(err)
	}
}

func testListLosesNothing(t *testing.T, f *fixture) {
	const writers, writes = 4, 25
	seen := make(chan error, 1)
	go func() {
		seen <- f.await(f.prefix, 0, func(pairs []kv.Pair) bool { return len(pairs) == writers*writes })
	}()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range writes {
				if _, err := f.Txn(f.ctx, []kv.Op{f.op(kv.Set, fmt.Sprintf("%d/%d", w, i), "x", 0)}); err != nil {
					t.Errorf("Txn: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if err := <-seen; err != nil {
		t.Fatal(err)
	}
}
