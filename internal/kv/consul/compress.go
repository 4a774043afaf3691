package consul

import (
	"bytes"
	"fmt"

	"github.com/klauspost/compress/s2"
)

const (
	// compressed is the prefix of a compressed value. The rest is an S2 block
	// (https://github.com/klauspost/compress/tree/master/s2). Values that have this
	// prefix themselves are always compressed, so that the prefix is unambiguous.
	compressed = 0xfd
	// worthwhile is the minimum length of compressed values. Shorter ones stay readable
	// in Consul.
	worthwhile = 256
)

// pack returns a value as it is stored in Consul. Values are sent to Consul, to every
// reader and through Consul's log as base64 within JSON. The cost grows with their
// length, and compression with S2 costs a fraction of it.
func pack(value []byte) []byte {
	marked := len(value) > 0 && value[0] == compressed
	if len(value) < worthwhile && !marked {
		return value
	}
	packed := make([]byte, 1+s2.MaxEncodedLen(len(value)))
	packed[0] = compressed
	packed = packed[:1+len(s2.Encode(packed[1:], value))]
	if len(packed) >= len(value) && !marked {
		return value
	}
	return packed
}

// unpack is the inverse of pack. It refuses values that would not fit into a transaction,
// which bounds the memory that a stored value can cause.
func unpack(value []byte) ([]byte, error) {
	if !bytes.HasPrefix(value, []byte{compressed}) {
		return value, nil
	}
	n, err := s2.DecodedLen(value[1:])
	if err != nil {
		return nil, fmt.Errorf("compressed value: %w", err)
	}
	if n > limits.Bytes {
		return nil, fmt.Errorf("compressed value: %d bytes when decompressed, at most %d are allowed", n, limits.Bytes)
	}
	value, err = s2.Decode(make([]byte, n), value[1:])
	if err != nil {
		return nil, fmt.Errorf("compressed value: %w", err)
	}
	return value, nil
}
