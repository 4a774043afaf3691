package build

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/musterhq/muster/internal/terminal"
)

// Messages of a build's output.
const (
	traceID = "moby.buildkit.trace"
	imageID = "moby.image.id"
)

// message is one message of a build's output: of BuildKit, or of the builder before it.
type message struct {
	ID     string          `json:"id"`
	Aux    json.RawMessage `json:"aux"`
	Stream string          `json:"stream"`
	Error  string          `json:"error"`
}

// progress prints what a build does.
type progress struct {
	name string
	out  io.Writer
	// started are the steps that were printed.
	started map[string]bool
	// partial is output that ends without a line break, by step.
	partial map[string][]byte
}

func newProgress(name string, out io.Writer) *progress {
	return &progress{name: name, out: out, started: map[string]bool{}, partial: map[string][]byte{}}
}

// read reads a build's output to its end and returns the id of the image.
func (p *progress) read(body io.Reader) (id string, err error) {
	for decoder := json.NewDecoder(body); ; {
		var m message
		if err := decoder.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return "", fmt.Errorf("read what the Engine says: %w", err)
		}
		switch {
		case m.Error != "":
			p.flush()
			return "", errors.New(m.Error)
		case m.ID == traceID:
			var trace []byte
			if err := json.Unmarshal(m.Aux, &trace); err != nil {
				return "", fmt.Errorf("read what BuildKit says: %w", err)
			}
			if err := p.trace(trace); err != nil {
				return "", fmt.Errorf("read what BuildKit says: %w", err)
			}
		case m.Aux != nil && (m.ID == imageID || m.ID == ""):
			var image struct{ ID string }
			if err := json.Unmarshal(m.Aux, &image); err == nil && image.ID != "" {
				id = image.ID
			}
		case m.Stream != "" && len(p.started) == 0:
			p.write("", []byte(m.Stream))
		}
	}
	p.flush()
	if id == "" {
		return "", errors.New("the Engine did not say which image it has built")
	}
	return id, nil
}

// Fields of BuildKit's messages (moby.buildkit.v1, control.proto).
const (
	traceVertex, traceLog                  protowire.Number = 1, 3
	vertexDigest, vertexName, vertexCached protowire.Number = 1, 3, 4
	vertexStarted, logVertex, logText      protowire.Number = 5, 1, 4
)

// trace prints steps that have begun, and what they write.
func (p *progress) trace(trace []byte) error {
	return fields(trace, func(n protowire.Number, value []byte, _ uint64) error {
		switch n {
		case traceVertex:
			return p.vertex(value)
		case traceLog:
			return p.log(value)
		}
		return nil
	})
}

func (p *progress) vertex(vertex []byte) error {
	var digest, name string
	var started, cached bool
	err := fields(vertex, func(n protowire.Number, value []byte, number uint64) error {
		switch n {
		case vertexDigest:
			digest = string(value)
		case vertexName:
			name = string(value)
		case vertexCached:
			cached = number != 0
		case vertexStarted:
			started = true
		}
		return nil
	})
	if err != nil || !started && !cached || p.started[digest] {
		return err
	}
	p.started[digest] = true
	if cached {
		name += " (cached)"
	}
	p.line(name)
	return nil
}

func (p *progress) log(log []byte) error {
	var vertex string
	var text []byte
	err := fields(log, func(n protowire.Number, value []byte, _ uint64) error {
		switch n {
		case logVertex:
			vertex = string(value)
		case logText:
			text = value
		}
		return nil
	})
	p.write(vertex, text)
	return err
}

// fields calls do for each field of a message, with the content of a field that has a
// length, or the number of one that is a number.
func fields(message []byte, do func(n protowire.Number, value []byte, number uint64) error) error {
	for len(message) > 0 {
		n, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return protowire.ParseError(size)
		}
		message = message[size:]
		var value []byte
		var number uint64
		switch kind {
		case protowire.BytesType:
			value, size = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			number, size = protowire.ConsumeVarint(message)
		default:
			size = protowire.ConsumeFieldValue(n, kind, message)
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		message = message[size:]
		if err := do(n, value, number); err != nil {
			return err
		}
	}
	return nil
}

// write prints whole lines of a step's output and keeps the rest.
func (p *progress) write(step string, text []byte) {
	rest := append(p.partial[step], text...)
	for {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		if !whole {
			break
		}
		p.line(string(line))
		rest = after
	}
	p.partial[step] = rest
}

// flush prints output that ended without a line break.
func (p *progress) flush() {
	for _, rest := range p.partial {
		if len(rest) > 0 {
			p.line(string(rest))
		}
	}
	clear(p.partial)
}

// line prints a line. Programs that run in a build may write anything.
func (p *progress) line(text string) {
	_, _ = fmt.Fprintf(p.out, "%s: %s\n", p.name, terminal.Line(text))
}
