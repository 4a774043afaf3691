package daemon_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/daemon"
)

// TestLogLinesStayLines logs what an attacker may have sent: whatever it is, it
// neither begins a line that looks like another daemon's word, nor has a terminal do
// anything.
func TestLogLinesStayLines(t *testing.T) {
	const evil = "web\n2026-01-01 INFO daemon is up\r\x1b[2J\x00\x08\x7f\u2028\u009b31m\xff"
	for _, format := range []string{"console", "json"} {
		t.Run(format, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			stderr := os.Stderr
			os.Stderr = f
			log, err := (&daemon.Settings{LogLevel: "info", LogFormat: format}).Log()
			os.Stderr = stderr
			if err != nil {
				t.Fatal(err)
			}
			log.Warn("call is refused", zap.String("name", evil), zap.Error(errors.New(evil)), zap.Any("labels", map[string]string{evil: evil}),
				zap.Strings("names", []string{evil}), zap.ByteString("data", []byte(evil)), zap.Stringer("who", stringer(evil)))
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			said, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(said, []byte("\n")); n != 1 {
				t.Errorf("one message has %d lines:\n%q", n, said)
			}
			for _, r := range string(bytes.TrimSuffix(said, []byte("\n"))) {
				if unicode.IsControl(r) && r != '\t' || r == '\u2028' || r == utf8.RuneError {
					t.Errorf("%q is in the line:\n%q", r, said)
				}
			}
		})
	}
}

type stringer string

func (s stringer) String() string { return string(s) }
