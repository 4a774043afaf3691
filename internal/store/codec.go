package store

import (
	"fmt"

	"google.golang.org/protobuf/proto"
)

// Codec turns values into bytes and back. Equal values must give equal bytes,
// or a Put of what is there already would count as a change. What Encode makes
// without an error, Decode must be able to read. It must not keep the bytes that
// it is given.
type Codec[T any] struct {
	Encode func(T) ([]byte, error)
	Decode func([]byte) (T, error)
}

// Proto is the codec of a Protocol Buffers message; newMessage returns an empty
// one. Its encoding is deterministic within one version of Muster, which is
// enough: a difference costs only a write of an equal value.
func Proto[M proto.Message](newMessage func() M) Codec[M] {
	return Codec[M]{
		Encode: func(m M) ([]byte, error) {
			b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
			if err != nil {
				return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
			}
			return b, nil
		},
		Decode: func(b []byte) (M, error) {
			m := newMessage()
			if err := proto.Unmarshal(b, m); err != nil {
				return m, fmt.Errorf("decode %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
			}
			return m, nil
		},
	}
}
