package backends_test

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/internal/backends"
)

// TestJoinedChangesApplyInOrder checks packing against a map: of several changes of one
// task the last one counts, and Compact keeps what is left.
func TestJoinedChangesApplyInOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		want := map[string]*networkv1.Backend{}
		named := map[string]bool{}
		var packed []byte
		for range rapid.IntRange(0, 5).Draw(t, "rounds") {
			var changed []*networkv1.Backend
			var gone []string
			for _, id := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"", "t1", "t2", "t3", "t4"}), 0, 5, rapid.ID).Draw(t, "tasks") {
				named[id] = true
				if rapid.Bool().Draw(t, "gone") {
					gone = append(gone, id)
					delete(want, id)
					continue
				}
				b := &networkv1.Backend{TaskId: id, NodeId: rapid.SampledFrom([]string{"", "n1", "n2"}).Draw(t, "node"), Slot: rapid.Uint64().Draw(t, "slot")}
				if rapid.Bool().Draw(t, "IPv4") {
					b.Addresses = append(b.Addresses, netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "IPv4 address"))).String())
				}
				if rapid.Bool().Draw(t, "IPv6") {
					b.Addresses = append(b.Addresses, netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "IPv6 address"))).String())
				}
				changed = append(changed, b)
				want[id] = b
			}
			part := backends.Pack(changed, gone)
			if n, err := backends.Count(part); err != nil || n != len(changed)+len(gone) {
				t.Fatalf("Count = %d, %v, want %d", n, err, len(changed)+len(gone))
			}
			packed = append(packed, part...)
		}
		got, gone, err := backends.Unpack(packed)
		check(t, got, err, want)
		if len(got)+len(gone) != len(named) {
			t.Fatalf("%d changed and %d gone, want one of both for each of %d tasks", len(got), len(gone), len(named))
		}
		compact, n := backends.Compact(packed)
		if n != len(want) {
			t.Fatalf("Compact keeps %d backends, want %d", n, len(want))
		}
		got, gone, err = backends.Unpack(compact)
		check(t, got, err, want)
		if len(gone) > 0 {
			t.Fatalf("Compact keeps %q, which are gone", gone)
		}
		if again, _ := backends.Compact(compact); !bytes.Equal(again, compact) {
			t.Fatalf("Compact of what is compact is %x, want %x", again, compact)
		}
	})
}

func check(t *rapid.T, got []*networkv1.Backend, err error, want map[string]*networkv1.Backend) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range got {
		if !proto.Equal(b, want[b.TaskId]) {
			t.Fatalf("backend %v, want %v", b, want[b.TaskId])
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d backends, want %q", len(got), slices.Sorted(maps.Keys(want)))
	}
}

func FuzzMalformedChangesAreErrors(f *testing.F) {
	f.Add(backends.Pack([]*networkv1.Backend{{TaskId: "t1", NodeId: "n1", Slot: 300, Addresses: []string{"192.0.2.1", "2001:db8::1"}}}, []string{"t2"}))
	f.Add([]byte{0, 1, 1})
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, packed []byte) {
		n, err := backends.Count(packed)
		changed, gone, unpacked := backends.Unpack(packed)
		if (err == nil) != (unpacked == nil) {
			t.Fatalf("Count says %v, Unpack says %v", err, unpacked)
		}
		if err == nil && len(changed)+len(gone) > n {
			t.Fatalf("%d of %d changes", len(changed)+len(gone), n)
		}
		compact, left := backends.Compact(packed)
		if n, err := backends.Count(compact); err != nil || n != left {
			t.Fatalf("Compact has %d changes, %v, want %d", n, err, left)
		}
	})
}

func BenchmarkCount(b *testing.B) {
	var all []*networkv1.Backend
	for i := range 10_000 {
		all = append(all, &networkv1.Backend{
			TaskId: fmt.Sprintf("%025d", i), NodeId: fmt.Sprintf("node-%d", i%100), Slot: uint64(i), Addresses: []string{fmt.Sprintf("10.64.%d.%d", i/250, i%250)},
		})
	}
	packed := backends.Pack(all, nil)
	b.SetBytes(int64(len(packed)))
	for b.Loop() {
		if n, err := backends.Count(packed); n != len(all) || err != nil {
			b.Fatal(n, err)
		}
	}
}
