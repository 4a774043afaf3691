package rest

import (
	"bytes"
	"errors"
	"io"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/musterhq/muster/internal/terminal"
)

// marshaler writes messages in protobuf's JSON form, without the fields that
// are not set: a spec that was read can be sent back as it is. An empty list of
// objects is written too, for programs that go through it. Control
// characters are escaped, for people who look at it on a terminal.
type marshaler struct{ *runtime.JSONPb }

func (m marshaler) Marshal(v any) ([]byte, error) {
	b, err := m.JSONPb.Marshal(v)
	if err != nil {
		return nil, err
	}
	if msg, ok := v.(proto.Message); ok {
		b = withEmptyList(msg.ProtoReflect(), b)
	}
	return append(terminal.JSON(b), '\n'), nil
}

// withEmptyList adds the list of a page that has no objects.
func withEmptyList(m protoreflect.Message, b []byte) []byte {
	fields := m.Descriptor().Fields()
	if m.Descriptor().Parent() != protoreflect.Descriptor(m.Descriptor().ParentFile()) || fields.Len() == 0 || !bytes.Equal(b, []byte("{}")) {
		return b
	}
	first := fields.Get(0)
	if !first.IsList() || first.Message() == nil {
		return b
	}
	return []byte(`{"` + first.JSONName() + `":[]}`)
}

func (m marshaler) NewEncoder(w io.Writer) runtime.Encoder {
	return runtime.EncoderFunc(func(v any) error {
		b, err := m.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	})
}

// NewDecoder returns a decoder that hands on what was decoded when the request was checked.
func (marshaler) NewDecoder(r io.Reader) runtime.Decoder {
	return runtime.DecoderFunc(func(v any) error {
		body, decoded := r.(decodedBody)
		if !decoded {
			return errors.New("the request's body was not decoded")
		}
		return body.into(v)
	})
}
