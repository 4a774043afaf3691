package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/store"
)

func TestNewRefusesInvalidOptions(t *testing.T) {
	k := newKV(t)
	table := store.NewTable("things", text())
	for name, c := range map[string]struct {
		opt    store.Options
		tables []store.TableDef
	}{
		"no kv":              {opt: store.Options{}},
		"prefix with slash":  {opt: store.Options{KV: k, Prefix: "a/b"}},
		"tiny pages":         {opt: store.Options{KV: k, MaxPage: 10}},
		"table without name": {opt: store.Options{KV: k}, tables: []store.TableDef{store.NewTable("", text())}},
		"one table twice":    {opt: store.Options{KV: k}, tables: []store.TableDef{table, store.NewTable("things", text())}},
	} {
		if _, err := store.New(c.opt, c.tables...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestRunRefusesASecondCall(t *testing.T) {
	s, _ := open(t, store.Options{KV: newKV(t)}, store.NewTable("things", text()))
	if err := s.Run(t.Context()); err == nil {
		t.Error("a second call of Run succeeded")
	}
}

func TestNewRefusesARegistryWithTheSameMetrics(t *testing.T) {
	k, metrics := newKV(t), prometheus.NewRegistry()
	for _, name := range []string{"a", "b"} {
		r := prometheus.WrapRegistererWith(prometheus.Labels{"store": name}, metrics)
		if _, err := store.New(store.Options{KV: k, Metrics: r}); err != nil {
			t.Error(err)
		}
		if _, err := store.New(store.Options{KV: k, Metrics: r}); err == nil {
			t.Error("metrics registered twice")
		}
	}
}

func TestPutRefusesInvalidKeysAndValues(t *testing.T) {
	broken := errors.New("broken")
	codec := text()
	codec.Encode = func(s string) ([]byte, error) {
		if s == "bad" {
			return nil, broken
		}
		return []byte(s), nil
	}
	table := store.NewTable("things", codec)
	s, _ := open(t, store.Options{KV: newKV(t)}, table)
	for name, c := range map[string]struct{ key, value string }{
		"empty key":   {"", "x"},
		"long key":    {strings.Repeat("k", store.MaxKey+1), "x"},
		"not encoded": {"k", "bad"},
	} {
		err := s.Update(t.Context(), func(tx *store.Tx) error {
			table.Put(tx, "other", "x")
			table.Put(tx, c.key, c.value)
			return nil
		})
		if err == nil || len(contents(table, s.Snapshot())) != 0 {
			t.Errorf("%s: err=%v, contents=%v", name, err, contents(table, s.Snapshot()))
		}
	}
	update(t, s, func(tx *store.Tx) { table.Put(tx, strings.Repeat("k", store.MaxKey), "x") })
}

func TestTableThatIsNotOpenPanics(t *testing.T) {
	s, _ := open(t, store.Options{KV: newKV(t)}, store.NewTable("things", text()))
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	store.NewTable("others", text()).Get(s.Snapshot(), "x")
}

func TestProtoCodecIsDeterministic(t *testing.T) {
	c := store.Proto(func() *musterv1.ServiceSpec { return new(musterv1.ServiceSpec) })
	m := &musterv1.ServiceSpec{Name: "web", Labels: map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"}}
	first, err := c.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if again, err := c.Encode(m); err != nil || string(again) != string(first) {
			t.Fatalf("encoded %x, then %x, err=%v", first, again, err)
		}
	}
	if got, err := c.Decode(first); err != nil || !proto.Equal(got, m) {
		t.Errorf("decoded %v, want %v, err=%v", got, m, err)
	}
	if _, err := c.Decode([]byte{0xff}); err == nil {
		t.Error("nonsense was decoded")
	}
}

// TestScanShowsWritesAheadOfIt changes records behind and ahead of a scan.
func TestScanShowsWritesAheadOfIt(t *testing.T) {
	table := store.NewTable("things", text())
	s, _ := open(t, store.Options{KV: newKV(t)}, table)
	update(t, s, func(tx *store.Tx) {
		for _, k := range []string{"a/1", "a/3", "a/5", "a/7"} {
			table.Put(tx, k, "old")
		}
	})
	var seen []string
	update(t, s, func(tx *store.Tx) {
		seen = nil
		for e := range table.Scan(tx, "a/") {
			seen = append(seen, e.Key[2:]+e.Value)
			if e.Key == "a/3" {
				table.Put(tx, "a/2", "new")
				table.Put(tx, "a/4", "new")
				table.Delete(tx, "a/3")
				table.Delete(tx, "a/5")
				table.Put(tx, "a/7", "new")
			}
		}
	})
	if got, want := strings.Join(seen, " "), "1old 3old 4new 7new"; got != want {
		t.Errorf("seen %s, want %s", got, want)
	}
}

// TestErrorIsReturnedOnlyAfterACurrentRead makes an update fail on a stale snapshot. It must
// run again on the current state before its error is returned.
func TestErrorIsReturnedOnlyAfterACurrentRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := store.NewTable("things", text())
		inner := newKV(t)
		k := kvfault.New(inner)
		a, _ := open(t, store.Options{KV: inner}, table)
		b, _ := open(t, store.Options{KV: k}, table)
		// The other store's watch is deaf after one more change.
		synctest.Wait()
		k.Inject(kvfault.Fault{Op: kvfault.List, Hang: true})
		update(t, a, func(tx *store.Tx) { table.Put(tx, "x/0", "wakes the list that is blocked") })
		synctest.Wait()
		update(t, a, func(tx *store.Tx) { table.Put(tx, "x/1", "there") })
		synctest.Wait()
		if _, ok := table.Get(b.Snapshot(), "x/1"); ok {
			t.Error("the snapshot is not behind")
		}
		missing := errors.New("not there")
		for range 2 {
			err := b.Update(t.Context(), func(tx *store.Tx) error {
				if _, ok := table.Get(tx, "x/1"); !ok {
					return missing
				}
				return context.Canceled
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("err=%v, want that of the newest state", err)
			}
		}
	})
}
