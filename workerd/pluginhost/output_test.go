package pluginhost

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestWhatAPluginWritesBecomesTheWorkersLog(t *testing.T) {
	t.Parallel()
	core, logged := observer.New(zap.DebugLevel)
	o := &output{log: zap.New(core)}
	for _, piece := range []string{
		"plain", " line\n\n", `{"@level":"warn","@message":"disk is slow","@timestamp":"x","ms":12}`, "\r\n", "{\"no\":\"entry\"}\n",
		strings.Repeat("y", 2*longestLine), "\nlast words",
	} {
		if n, err := o.Write([]byte(piece)); n != len(piece) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	type line struct {
		level zapcore.Level
		text  any
	}
	var got []line
	for _, entry := range logged.All() {
		if entry.Message != "plugin says" {
			t.Errorf("message %q, want plugin says", entry.Message)
		}
		got = append(got, line{entry.Level, entry.ContextMap()["text"]})
	}
	want := []line{
		{zap.InfoLevel, "plain line"}, {zap.WarnLevel, "disk is slow"}, {zap.InfoLevel, `{"no":"entry"}`},
		{zap.InfoLevel, strings.Repeat("y", 2*longestLine)},
	}
	if !slices.Equal(got, want) {
		t.Errorf("logged %v", got)
	}
	if ms := logged.All()[1].ContextMap()["ms"]; ms != 12.0 {
		t.Errorf("field ms = %v", ms)
	}
	if last := o.last(); !strings.HasSuffix(last, "; last words") || !strings.HasPrefix(last, "plain line; disk is slow") {
		t.Errorf("last = %q", last)
	}
}

func FuzzOutput(f *testing.F) {
	f.Add([]byte("a line\n"))
	f.Add([]byte(`{"@level":"error","@message":"m","k":[1,{"x":null}]}` + "\n"))
	f.Fuzz(func(t *testing.T, written []byte) {
		core, logged := observer.New(zap.DebugLevel)
		o := &output{log: zap.New(core)}
		for piece := range slices.Chunk(written, 7) {
			if _, err := o.Write(piece); err != nil {
				t.Fatal(err)
			}
		}
		if lines := bytes.Count(written, []byte{'\n'}) + len(written)/longestLine; logged.Len() > lines {
			t.Errorf("%d entries of %d lines", logged.Len(), lines)
		}
	})
}
