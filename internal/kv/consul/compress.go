package consul

import (
	"bytes"
	"fmt"

	"github.com/klauspost/compress/s2"
)

const (
	// compressed marks a value that is kept compressed; the rest of it is an S2
	// block (https://github.com/klauspost/compress/tree/master/s2). Values that
	// begin so by themselves are always compressed, so that the mark is sure.
	compressed = 0xfd
	// worthwhile is the least length that is compressed: what is shorter stays
	// readable to people who look into Consul.
	worthwhile = 256
)

// pack returns a value as Consul is to keep it. Values travel as base64 within
// JSON, into Consul, to every reader and through Consul's log, and what that
// costs grows with their length; S2 costs a fraction of it.
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

// unpack is the inverse of pack. It refuses what would not have been let in:
// so what is kept cannot make more of itself than a transaction may hold.
func unpack(value []byte) ([]byte, error) {
	if !bytes.HasPrefix(value, []byte{compressed}) {
		return value, nil
	}
	n, err := s2.DecodedLen(value[1:])
	if err != nil {
		return nil, fmt.Errorf("compressed value: %w", err)
	}
	if n > limits.Bytes {
		return nil, fmt.Errorf("compressed value: it would have %d bytes, and %d are the most", n, limits.Bytes)
	}
	value, err = s2.Decode(make([]byte, n), value[1:])
	if err != nil {
		return nil, fmt.Errorf("compressed value: %w", err)
	}
	return value, nil
}
