package store

import (
	"fmt"

	"google.golang.org/protobuf/proto"
)

// Codec encodes and decodes values. Equal values must have equal encodings; otherwise a
// Put of the stored value counts as a change. Decode must accept everything that Encode
// returns, and must not keep its argument.
type Codec[T any] struct {
	Encode func(T) ([]byte, error)
	Decode func([]byte) (T, error)
}

// Proto returns the codec of a Protocol Buffers message. newMessage returns an empty
// message. The encoding is deterministic within one version of Muster. That is enough,
// because a different encoding only causes a write of an equal value.
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
