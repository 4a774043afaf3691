package consul

import (
	"bytes"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
	"pgregory.net/rapid"
)

func TestPackUnpack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.SliceOf(rapid.Byte()).Draw(t, "value")
		if rapid.Bool().Draw(t, "marked") {
			value = append([]byte{compressed}, value...)
		}
		value = bytes.Repeat(value, rapid.IntRange(1, 100).Draw(t, "times"))
		packed := pack(bytes.Clone(value))
		if again := pack(value); !bytes.Equal(packed, again) {
			t.Fatal("one value is packed in two ways: to write it again would be a change")
		}
		got, err := unpack(packed)
		if err != nil || !bytes.Equal(got, value) {
			t.Fatalf("of %d bytes came back %d, error %v", len(value), len(got), err)
		}
	})
}

func TestPackIsWorthIt(t *testing.T) {
	page := []byte(strings.Repeat("service/00000017/started at noon;", 300))
	if packed := pack(page); len(packed) > len(page)/3 {
		t.Errorf("%d bytes became %d", len(page), len(packed))
	}
	if short := []byte("who holds the lock"); !bytes.Equal(pack(short), short) {
		t.Error("a short value is not readable any more")
	}
}

// FuzzUnpack reads what anybody with access to Consul may have written.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte{compressed})
	f.Add([]byte("plain"))
	f.Add(pack(bytes.Repeat([]byte("x"), 1000)))
	f.Add(append([]byte{compressed}, s2.Encode(nil, make([]byte, limits.Bytes+1))...))
	f.Fuzz(func(t *testing.T, value []byte) {
		if got, err := unpack(value); err == nil && len(got) > max(limits.Bytes, len(value)) {
			t.Errorf("%d bytes became %d", len(value), len(got))
		}
	})
}
