package networks

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/internal/backends"
)

// TestFeedForgetsWhatReadersKnow checks that readers find all changes however late they
// read, and that a feed holds little more than its members once all have read.
func TestFeedForgetsWhatReadersKnow(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		x := New(nil, nil)
		f := &x.network("net1").feed
		want := map[string]string{}
		known := map[*reader]map[string]string{}
		read := func(r *reader) {
			for _, c := range r.Next() {
				b := c.Object.GetPackedBackends()
				if b.GetComplete() {
					clear(known[r])
				}
				changed, gone, err := backends.Unpack(b.GetChanges())
				if err != nil {
					t.Fatal(err)
				}
				for _, one := range changed {
					known[r][one.TaskId] = one.Addresses[0]
				}
				for _, id := range gone {
					delete(known[r], id)
				}
			}
		}
		f.set(memberKey{service: "s1"}, &networkv1.Service{Id: "s1"}, 0)
		var readers []*reader
		for i := range rapid.IntRange(1, 4).Draw(t, "readers") {
			r := members{x, fmt.Sprintf("n%d", i), "net1"}.Read().(*reader)
			known[r] = map[string]string{}
			readers = append(readers, r)
		}
		for range rapid.IntRange(0, 12).Draw(t, "rounds") {
			// The first of many tasks that come or go together.
			first, up := rapid.IntRange(0, 400).Draw(t, "first"), rapid.Bool().Draw(t, "come")
			for i := range rapid.IntRange(0, 200).Draw(t, "tasks") {
				id := fmt.Sprint(first + i)
				key := memberKey{service: "s1", task: id}
				if up {
					want[id] = netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(f.newest)))).String()
					f.set(key, &networkv1.Backend{TaskId: id, Addresses: []string{want[id]}}, 1)
				} else {
					delete(want, id)
					f.set(key, nil, 0)
				}
			}
			if rapid.Bool().Draw(t, "published") {
				f.publish()
			}
			if r := rapid.SampledFrom(readers).Draw(t, "reader"); rapid.Bool().Draw(t, "reads") {
				read(r)
			}
		}
		f.publish()
		for _, r := range readers {
			read(r)
			if !maps.Equal(known[r], want) {
				t.Fatalf("reader knows %v, want %v", slices.Sorted(maps.Keys(known[r])), slices.Sorted(maps.Keys(want)))
			}
		}
		f.compact()
		if n := f.order.Len(); n != len(want)+1 || f.live["s1"] != len(want) || f.withdrawn != 0 {
			t.Fatalf("the feed holds %d members, %d of them withdrawn, want %d", n, f.withdrawn, len(want)+1)
		}
		for _, r := range readers {
			r.Close()
		}
		for id := range 300 {
			f.set(memberKey{service: "s1", task: fmt.Sprintf("late-%d", id)}, &networkv1.Backend{TaskId: "late"}, 1)
			f.set(memberKey{service: "s1", task: fmt.Sprintf("late-%d", id)}, nil, 0)
		}
		if n := f.withdrawn; n > max(fewWithdrawn, len(want))+1 {
			t.Fatalf("a feed without readers keeps %d withdrawn members", n)
		}
	})
}
