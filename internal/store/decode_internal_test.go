package store

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

type bytesTable struct{}

func (bytesTable) rarelyWritten() bool { return false }

func (bytesTable) Name() string                   { return "bytes" }
func (bytesTable) decode(raw []byte) (any, error) { return string(raw), nil }

// samplePages returns records as pages hold them.
func samplePages() [][]*record {
	one := func(key, raw string, version uint64) *record {
		return &record{key: key, raw: raw, value: raw, version: version}
	}
	var many []*record
	for i := range 200 {
		many = append(many, one(fmt.Sprintf("service/%08d/task", i), strings.Repeat("x", i), uint64(i*i)))
	}
	return [][]*record{
		{},
		{one("a", "", 1)},
		{one("a", "1", 1), one("a/b", "2", 300), one("b", strings.Repeat("y", 1000), 70000)},
		many,
		{one(strings.Repeat("k", MaxKey), "long", 9)},
	}
}

func pageSize(recs []*record) int {
	size, before := pageOverhead, ""
	for _, r := range recs {
		size += r.size(before)
		before = r.key
	}
	return size
}

func FuzzDecodePage(f *testing.F) {
	for _, recs := range samplePages() {
		f.Add(encodePage(recs, pageSize(recs)), "", "", uint64(1<<40))
		f.Add(encodePage(recs, pageSize(recs)), "a", "b", uint64(200))
	}
	f.Add([]byte{pageFormat, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, "", "", uint64(1))
	f.Fuzz(func(t *testing.T, value []byte, low, high string, seq uint64) {
		in := bounds{low: low, high: high, seq: seq}
		recs, err := decodePage(bytesTable{}, value, in, noRecords{})
		if err != nil {
			return
		}
		before := ""
		for i, r := range recs {
			if i > 0 && r.key <= before || r.key < low || high != "" && r.key >= high || r.version > seq {
				t.Fatalf("record %q of version %d after %q, within %+v", r.key, r.version, before, in)
			}
			before = r.key
		}
		again := encodePage(recs, pageSize(recs))
		if len(again) > pageSize(recs) {
			t.Errorf("encoded in %d bytes, more than the %d foreseen", len(again), pageSize(recs))
		}
		// Known records are taken over, and nothing else changes.
		known := &shard{pages: []*page{{recs: recs}}}
		c := known.seek("")
		same, err := decodePage(bytesTable{}, again, in, &c)
		if err != nil || len(same) != len(recs) {
			t.Fatalf("decoded again: %d records of %d, err=%v", len(same), len(recs), err)
		}
		for i := range same {
			if same[i] != recs[i] {
				t.Errorf("record %q was made again", same[i].key)
			}
		}
	})
}

func FuzzDecodeHead(f *testing.F) {
	for _, h := range []*head{
		{writers: []writer{}, pages: []pageRef{}},
		{seq: 1, next: 1, writers: []writer{{id: 1 << 63, commit: 1}}, pages: []pageRef{{num: 0, seq: 1, sum: 7}}},
		{seq: 1 << 40, next: 1 << 20, writers: []writer{{1, 2}, {3, 4}}, pages: []pageRef{
			{low: "", num: 5, seq: 9, sum: 1 << 31}, {low: "a", num: 6, seq: 1 << 39}, {low: "a/b", num: 700}, {low: "b"},
		}},
	} {
		f.Add(h.encode())
	}
	f.Add([]byte{headFormat, 1, 1, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, value []byte) {
		h, err := decodeHead(value)
		if err != nil {
			return
		}
		again, err := decodeHead(h.encode())
		if err != nil || !reflect.DeepEqual(h, again) {
			t.Fatalf("decoded again: %+v, want %+v, err=%v", again, h, err)
		}
		sh := &shard{seq: h.seq, next: h.next, writers: h.writers}
		for i, ref := range h.pages {
			if i > 0 && ref.low <= h.pages[i-1].low || ref.num >= h.next || ref.seq > h.seq {
				t.Fatalf("page %+v in %+v", ref, h)
			}
			sh.pages = append(sh.pages, &page{pageRef: ref})
		}
		if len(h.writers) <= maxWriters && sh.headSize() < len(h.encode()) {
			t.Errorf("head has %d bytes, more than the %d foreseen", len(h.encode()), sh.headSize())
		}
	})
}
