package pluginhost

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// longestLine is how much is gathered of a line that does not end: then it
	// is logged as it is so far.
	longestLine = 8 << 10
	// tailLines is how many lines are shown with the reason of a failed start.
	tailLines = 5
)

// output takes over what a plugin writes to standard error into the worker's
// log, and remembers the last of it.
type output struct {
	log *zap.Logger

	mu   sync.Mutex
	rest []byte
	tail []string
}

// Write takes in a piece of output.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rest = append(o.rest, p...)
	for {
		line, rest, found := bytes.Cut(o.rest, []byte{'\n'})
		if !found && len(o.rest) < longestLine {
			return len(p), nil
		}
		if !found {
			line, rest = o.rest, nil
		}
		o.line(bytes.TrimRight(line, "\r"))
		o.rest = append([]byte(nil), rest...)
	}
}

// line logs one line. What is a log entry already keeps its level and fields.
func (o *output) line(line []byte) {
	if len(bytes.TrimSpace(line)) == 0 {
		return
	}
	level, message, fields := parse(line)
	if len(o.tail) == tailLines {
		o.tail = slices.Delete(o.tail, 0, 1)
	}
	o.tail = append(o.tail, message)
	if entry := o.log.Check(level, "plugin says"); entry != nil {
		entry.Write(append(fields, zap.String("text", message))...)
	}
}

// last returns the last lines, for people.
func (o *output) last() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	tail := o.tail
	if rest := strings.TrimSpace(string(o.rest)); rest != "" {
		tail = append(slices.Clone(tail), rest)
	}
	return strings.Join(tail, "; ")
}

// parse reads a line in the form of hclog: JSON with "@level" and "@message".
// Any other line is its own message.
func parse(line []byte) (zapcore.Level, string, []zap.Field) {
	var entry map[string]any
	if json.Unmarshal(line, &entry) != nil {
		return zapcore.InfoLevel, string(line), nil
	}
	message, ok := entry["@message"].(string)
	if !ok {
		return zapcore.InfoLevel, string(line), nil
	}
	level := zapcore.InfoLevel
	switch entry["@level"] {
	case "trace", "debug":
		level = zapcore.DebugLevel
	case "warn":
		level = zapcore.WarnLevel
	case "error", "fatal", "panic":
		level = zapcore.ErrorLevel
	}
	var keys []string
	for key := range entry {
		if !strings.HasPrefix(key, "@") {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	fields := make([]zap.Field, 0, len(keys)+1)
	for _, key := range keys {
		fields = append(fields, zap.Any(key, entry[key]))
	}
	return level, message, fields
}
