package simulation

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// kept is how many of the last events are told when a run fails.
const kept = 300

// journal remembers the last events, and writes all of them if there is where to.
type journal struct {
	began time.Time
	all   io.Writer

	mu    sync.Mutex
	lines []string
	next  int
}

func newJournal(all io.Writer) *journal { return &journal{began: time.Now(), all: all} }

// note notes an event.
func (j *journal) note(format string, args ...any) {
	line := fmt.Sprintf("%10.3f  %s", time.Since(j.began).Seconds(), fmt.Sprintf(format, args...))
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.all != nil {
		// That a line is lost loses nothing else.
		_, _ = fmt.Fprintln(j.all, line)
	}
	if len(j.lines) < kept {
		j.lines = append(j.lines, line)
		return
	}
	j.lines[j.next] = line
	j.next = (j.next + 1) % kept
}

// tail returns the last events.
func (j *journal) tail() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(append(append([]string(nil), j.lines[j.next:]...), j.lines[:j.next]...), "\n")
}

// logger returns a logger whose lines are events.
func (j *journal) logger(name string, level zapcore.Level) *zap.Logger {
	cfg := zapcore.EncoderConfig{MessageKey: "message", LevelKey: "level", EncodeLevel: zapcore.LowercaseLevelEncoder, ConsoleSeparator: " ", EncodeDuration: zapcore.StringDurationEncoder, EncodeTime: zapcore.ISO8601TimeEncoder}
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(cfg), &logged{j, name}, level))
}

// logged turns log lines into events.
type logged struct {
	journal *journal
	name    string
}

func (l *logged) Write(b []byte) (int, error) {
	l.journal.note("%s: %s", l.name, bytes.TrimSpace(b))
	return len(b), nil
}

func (l *logged) Sync() error { return nil }
