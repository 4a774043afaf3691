package tracing

import (
	"bytes"
	"testing"
)

// FuzzDecode: what is read from a record is written back as it was.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, idLength))
	f.Add(bytes.Repeat([]byte{7}, idLength))
	f.Add(bytes.Repeat([]byte{7}, idLength+1))
	f.Fuzz(func(t *testing.T, b []byte) {
		if sc, ok := decode(b); ok && !bytes.Equal(encode(sc), b) {
			t.Errorf("%x is read as %x", b, encode(sc))
		}
	})
}
