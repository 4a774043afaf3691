package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/cmd/muster/internal/specfile"
)

// readSpec reads a service spec from a file of JSON or YAML, or from standard
// input for "-". It also returns the lines of the fields, under their paths in a
// request.
func (c *CLI) readSpec(path string) (*musterv1.ServiceSpec, *specOrigin, error) {
	b, err := c.readFile(path)
	if err != nil {
		return nil, nil, err
	}
	name := path
	if path == "-" {
		name = "standard input"
	}
	spec := &musterv1.ServiceSpec{}
	lines, err := specfile.Read(name, b, spec)
	if err != nil {
		return nil, nil, usage("--file: %w", err)
	}
	return spec, &specOrigin{file: name, lines: lines}, nil
}

func (c *CLI) readFile(path string) ([]byte, error) {
	if path == "-" {
		b, err := io.ReadAll(c.In)
		if err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		return b, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, usage("%w", err)
	}
	return b, nil
}

// readPayload reads the payload of a generic runtime: JSON, or @file.
func (c *CLI) readPayload(v string) (*structpb.Struct, error) {
	payload := &structpb.Struct{}
	if path, ok := strings.CutPrefix(v, "@"); ok {
		b, err := c.readFile(path)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(b, new(any)); err != nil {
			return nil, usage("--payload: %w", specfile.JSONError(path, b, err))
		}
		if err := protojson.Unmarshal(b, payload); err != nil {
			return nil, usage("--payload: %s: want a JSON object like '{\"command\": [\"sleep\", \"60\"]}'", path)
		}
		return payload, nil
	}
	if !json.Valid([]byte(v)) {
		return nil, usage("--payload: %q is not JSON; want an object like '{\"command\": [\"sleep\", \"60\"]}', or @file", v)
	}
	if err := protojson.Unmarshal([]byte(v), payload); err != nil {
		return nil, usage("--payload: %q: want a JSON object like '{\"command\": [\"sleep\", \"60\"]}'", v)
	}
	return payload, nil
}
