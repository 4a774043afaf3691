package daemon

import (
	"fmt"
	"os"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Log returns the logger that the settings ask for. It writes to standard error.
func (s *Settings) Log() (*zap.Logger, error) {
	level, err := zapcore.ParseLevel(s.LogLevel)
	if err != nil {
		return nil, fmt.Errorf("--log-level: %w", err)
	}
	cfg := zap.NewProductionEncoderConfig()
	cfg.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	cfg.EncodeDuration = zapcore.StringDurationEncoder
	var encoder zapcore.Encoder
	if s.LogFormat == "console" {
		cfg.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		cfg.EncodeLevel = zapcore.CapitalLevelEncoder
		encoder = zapcore.NewConsoleEncoder(cfg)
	} else {
		encoder = zapcore.NewJSONEncoder(cfg)
	}
	// Nothing is sampled: a message that is logged a hundred times a second shows a fault.
	out := zapcore.Lock(os.Stderr)
	return zap.New(zapcore.NewCore(encoder, plain{out}, level), zap.ErrorOutput(out)), nil
}

// plain escapes characters that zap does not escape and that should not reach a reader:
// those that a terminal acts on, and those that some programs take for the end of a line.
// They only occur within strings of JSON.
type plain struct{ zapcore.WriteSyncer }

func (p plain) Write(line []byte) (int, error) {
	text := string(line)
	if !strings.ContainsFunc(text, acting) {
		return p.WriteSyncer.Write(line)
	}
	var b strings.Builder
	for _, r := range text {
		if acting(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	if _, err := p.WriteSyncer.Write([]byte(b.String())); err != nil {
		return 0, err
	}
	return len(line), nil
}

func acting(r rune) bool {
	return r >= '\x7f' && r <= '\u009f' || r == '\u2028' || r == '\u2029'
}
