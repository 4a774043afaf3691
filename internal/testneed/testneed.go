// Package testneed says what becomes of a test that needs something of the machine
// which is not there: where CI is set it fails, elsewhere it is skipped and says
// why.
package testneed

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// Met ends the test at an error: something that it needs is not there.
func Met(t testing.TB, err error) {
	t.Helper()
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("this test needs what is not there: %v", err)
	default:
		t.Skipf("this test needs what is not there: %v", err)
	}
}

// Program ends the test unless a program is on PATH.
func Program(t testing.TB, name string) {
	t.Helper()
	_, err := exec.LookPath(name)
	Met(t, err)
}

// answerTimeout bounds a program's answer.
const answerTimeout = time.Minute

// Answer ends the test unless a program is there and answers.
func Answer(t testing.TB, program string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), answerTimeout)
	defer cancel()
	if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
		Met(t, fmt.Errorf("%s %q: %w\n%s", program, args, err, out))
	}
}
