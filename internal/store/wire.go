package store

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// Errors of decoders. The caller adds the key.
var (
	errTruncated = errors.New("truncated")
	errFormat    = errors.New("unknown format")
	errCorrupt   = errors.New("corrupt")
)

// castagnoli is a table of constants.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// wireReader decodes a value. After the first error it returns zeroes, so that callers
// need to check for errors only once, but before they allocate memory for what was read.
type wireReader struct {
	b   []byte
	err error
}

func (r *wireReader) fail(err error) {
	if r.err == nil {
		r.err, r.b = err, nil
	}
}

func (r *wireReader) byte() byte {
	if len(r.b) == 0 {
		r.fail(errTruncated)
		return 0
	}
	b := r.b[0]
	r.b = r.b[1:]
	return b
}

func (r *wireReader) uvarint() uint64 {
	// Most numbers are lengths below 128.
	if len(r.b) > 0 && r.b[0] < 0x80 {
		v := uint64(r.b[0])
		r.b = r.b[1:]
		return v
	}
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail(errTruncated)
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *wireReader) uint64() uint64 {
	b := r.bytes(8)
	if b == nil {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func (r *wireReader) uint32() uint32 {
	b := r.bytes(4)
	if b == nil {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// bytes returns the next n bytes without copying them.
func (r *wireReader) bytes(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.fail(errTruncated)
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

// count reads the number of elements that follow. Each has at least size bytes, which
// bounds the caller's allocation by the length of the value.
func (r *wireReader) count(size int) int {
	n := r.uvarint()
	if n > uint64(len(r.b)/size) {
		r.fail(errTruncated)
		return 0
	}
	return int(n)
}

// end returns an error unless the whole value was read.
func (r *wireReader) end() error {
	if r.err == nil && len(r.b) != 0 {
		r.fail(errCorrupt)
	}
	return r.err
}

func uvarintLen(v uint64) int {
	n := 1
	for v >= 0x80 {
		v >>= 7
		n++
	}
	return n
}

// shared returns the length of the common prefix of a and b.
func shared[A, B ~string | ~[]byte](a A, b B) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
