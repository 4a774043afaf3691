package conformance

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// mostOutput is how many of the last lines of an executor's output a trial keeps.
const mostOutput = 20

// trial tests one rule outside of a Go test, and records the findings.
type trial struct {
	ctx context.Context

	mu       sync.Mutex
	faults   []string
	output   []string
	cleanups []func()
}

var _ T = (*trial)(nil)

// run runs a function until it returns or fails, and cleans up.
func (t *trial) run(ctx context.Context, test func()) {
	ctx, cancel := context.WithCancel(ctx)
	t.ctx = ctx
	t.goexits(test)
	cancel()
	for {
		t.mu.Lock()
		if len(t.cleanups) == 0 {
			t.mu.Unlock()
			return
		}
		last := t.cleanups[len(t.cleanups)-1]
		t.cleanups = t.cleanups[:len(t.cleanups)-1]
		t.mu.Unlock()
		t.goexits(last)
	}
}

// goexits runs f in a goroutine of its own, which Fatal ends.
func (t *trial) goexits(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

func (t *trial) Helper() {}

func (t *trial) Context() context.Context { return t.ctx }

func (t *trial) Cleanup(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanups = append(t.cleanups, f)
}

// Log takes the executor's output.
func (t *trial) Log(args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if text := line(args); text != "" {
		t.output = append(t.output, text)
	}
	if len(t.output) > mostOutput {
		t.output = slices.Delete(t.output, 0, 1)
	}
}

func (t *trial) Error(args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.faults = append(t.faults, line(args))
}

func (t *trial) Errorf(format string, args ...any) { t.Error(fmt.Sprintf(format, args...)) }

func (t *trial) Fatal(args ...any) {
	t.Error(args...)
	runtime.Goexit()
}

func (t *trial) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	runtime.Goexit()
}

func (t *trial) Failed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.faults) > 0
}

func line(args []any) string { return strings.TrimSpace(fmt.Sprintln(args...)) }
