package store_test

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/store"
)

// TestTablesBehaveLikeMaps runs random updates of two tables through several stores on one
// kv, and compares the tables with maps. Pages are small, so that they are split and merged
// often.
func TestTablesBehaveLikeMaps(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		k, err := embedded.Open(embedded.Config{})
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = k.Close() }()
		m := &model{}
		for i, name := range []string{"one", "two"} {
			m.tables[i] = store.NewTable(name, text())
			m.want[i] = map[string]string{}
		}
		opt := store.Options{KV: k, MaxPage: rapid.SampledFrom([]int{64, 200, 1000}).Draw(rt, "maxPage")}
		for range rapid.IntRange(1, 3).Draw(rt, "stores") {
			s, stop := open(rt, opt, m.tables[0], m.tables[1])
			defer stop()
			m.views = append(m.views, &view{s: s, made: [2]map[string]string{{}, {}}})
		}
		rt.Repeat(map[string]func(*rapid.T){
			"update": m.update,
			"look":   m.look,
			"open": func(rt *rapid.T) {
				// Who comes later finds the same.
				s, stop := open(rt, opt, m.tables[0], m.tables[1])
				defer stop()
				m.compare(rt, &view{s: s, made: [2]map[string]string{{}, {}}})
			},
		})
	})
}

type model struct {
	tables [2]*store.Table[string]
	want   [2]map[string]string
	views  []*view
	count  int
}

// view is a store, one of its snapshots, and each table as built from the changes up to that
// snapshot.
type view struct {
	s    *store.Store
	seen *store.Snapshot
	made [2]map[string]string
}

// counter is the key of a record that every update of a table changes. Tests wait for its
// value.
const counter = "~"

var (
	keys   = rapid.StringMatching(`[a-d]{1,2}(/[a-c]{0,3}){0,2}`)
	values = rapid.OneOf(
		rapid.StringN(0, 20, -1),
		rapid.Custom(func(t *rapid.T) string {
			return strings.Repeat(rapid.StringMatching(`[a-z]`).Draw(t, "fill"), rapid.IntRange(0, 2000).Draw(t, "size"))
		}),
	)
	errRefused = errors.New("refused")
)

type step struct {
	table      int
	key, value string
	remove     bool
}

var steps = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
	return step{
		table:  rapid.IntRange(0, 1).Draw(t, "table"),
		key:    keys.Draw(t, "key"),
		value:  values.Draw(t, "value"),
		remove: rapid.IntRange(0, 2).Draw(t, "remove") == 0,
	}
}), 0, 20)

func (m *model) update(rt *rapid.T) {
	todo := steps.Draw(rt, "steps")
	refuse := rapid.IntRange(0, 5).Draw(rt, "refuse") == 0
	s := rapid.SampledFrom(m.views).Draw(rt, "view").s
	m.count++

	// What the function saw when it ran for the last time is what counts: an
	// earlier run may have been on a snapshot that was old.
	var begin, end [2]map[string]string
	err := s.Update(rt.Context(), func(tx *store.Tx) error {
		for i, t := range m.tables {
			begin[i] = contents(t, tx)
			t.Put(tx, counter, strconv.Itoa(m.count))
		}
		for _, st := range todo {
			if st.remove {
				m.tables[st.table].Delete(tx, st.key)
			} else {
				m.tables[st.table].Put(tx, st.key, st.value)
			}
			got, ok := m.tables[st.table].Get(tx, st.key)
			if ok == st.remove || ok && got.Value != st.value {
				rt.Errorf("after %+v: %+v, %t", st, got, ok)
			}
		}
		for i, t := range m.tables {
			end[i] = contents(t, tx)
		}
		if refuse {
			return errRefused
		}
		return nil
	})
	next := [2]map[string]string{maps.Clone(m.want[0]), maps.Clone(m.want[1])}
	for _, st := range todo {
		if st.remove {
			delete(next[st.table], st.key)
		} else {
			next[st.table][st.key] = st.value
		}
	}
	for i := range next {
		next[i][counter] = strconv.Itoa(m.count)
		equal(rt, "begin of update", begin[i], m.want[i])
		equal(rt, "end of update", end[i], next[i])
	}
	switch {
	case refuse && !errors.Is(err, errRefused):
		rt.Fatalf("err=%v, want the function's own", err)
	case refuse:
		return
	case err != nil:
		rt.Fatal(err)
	}
	m.want = next
	for i, t := range m.tables {
		equal(rt, "own snapshot", contents(t, s.Snapshot()), m.want[i])
	}
}

func (m *model) look(rt *rapid.T) {
	m.compare(rt, rapid.SampledFrom(m.views).Draw(rt, "view"))
}

// compare waits until a view shows the last update, and checks its contents, scans and
// changes.
func (m *model) compare(rt *rapid.T, v *view) {
	sn := v.s.Snapshot()
	for i, t := range m.tables {
		for {
			if e, _ := t.Get(sn, counter); e.Value == m.want[i][counter] {
				break
			}
			var err error
			if sn, err = v.s.Wait(rt.Context(), sn); err != nil {
				rt.Fatal(err)
			}
		}
	}
	prefix := rapid.StringMatching(`[a-d]{0,2}/?[a-c]{0,2}`).Draw(rt, "prefix")
	for i, t := range m.tables {
		equal(rt, "snapshot", contents(t, sn), m.want[i])
		m.scan(rt, t, sn, prefix, m.want[i])
		for c := range t.Changes(v.seen, sn) {
			m.apply(rt, v.made[i], c)
		}
		equal(rt, "changes", v.made[i], m.want[i])
	}
	v.seen = sn
}

func (m *model) scan(rt *rapid.T, t *store.Table[string], sn *store.Snapshot, prefix string, want map[string]string) {
	found := map[string]string{}
	lastOf := map[int]string{}
	for e := range t.Scan(sn, prefix) {
		found[e.Key] = e.Value
		shard := store.ShardOf(e.Key)
		if last, ok := lastOf[shard]; ok && e.Key <= last {
			rt.Fatalf("scan of %q gives %q after %q", prefix, e.Key, last)
		}
		lastOf[shard] = e.Key
		if seq := t.Sequences(sn)[shard]; e.Version > seq {
			rt.Fatalf("%q has version %d, its shard %d", e.Key, e.Version, seq)
		}
	}
	some := maps.Clone(want)
	maps.DeleteFunc(some, func(k, _ string) bool { return !strings.HasPrefix(k, prefix) })
	equal(rt, "scan of "+prefix, found, some)
}

// apply checks that the old record of a change is the present one, and applies the change.
func (m *model) apply(rt *rapid.T, to map[string]string, c store.Change[string]) {
	switch {
	case c.Old != nil && to[c.Old.Key] != c.Old.Value:
		rt.Fatalf("old=%+v, want value %q", *c.Old, to[c.Old.Key])
	case c.Old != nil && c.New != nil && (c.Old.Key != c.New.Key || c.New.Version <= c.Old.Version):
		rt.Fatalf("old=%+v new=%+v", *c.Old, *c.New)
	}
	if c.Old == nil {
		if _, ok := to[c.New.Key]; ok {
			rt.Fatalf("%q is new, but was there", c.New.Key)
		}
	} else {
		delete(to, c.Old.Key)
	}
	if c.New != nil {
		to[c.New.Key] = c.New.Value
	}
}

func equal(rt *rapid.T, what string, got, want map[string]string) {
	rt.Helper()
	if !maps.Equal(got, want) {
		rt.Fatalf("%s: keys %q, want %q (or values differ)", what, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}
