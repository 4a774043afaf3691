// Package need handles tests that need something that the machine lacks: in CI such a test
// fails, elsewhere it is skipped and says why.
package need

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// Met ends the test if err is not nil. Err names what the test needs and the machine lacks.
func Met(t testing.TB, err error) {
	t.Helper()
	switch {
	case err == nil:
	case inCI():
		t.Fatalf("something that this test needs is missing: %v", err)
	default:
		t.Skipf("something that this test needs is missing: %v", err)
	}
}

func inCI() bool { return os.Getenv("CI") != "" }

// Main runs the tests of a package whose every test needs some programs, and returns the
// exit code. If a program is not on PATH it runs none: in CI the package fails. Elsewhere
// go test reports "[no tests to run]" instead of a mere "ok", because go test hides the
// output of a package that does not fail.
func Main(m interface{ Run() int }, name string, programs ...string) int {
	missing := Missing(programs...)
	if missing == nil {
		return m.Run()
	}
	fmt.Fprintf(os.Stderr, "SKIP %s: all of its tests need %v (make bin/consul builds Consul; PATH=$PWD/bin:$PATH)\n", name, missing)
	if inCI() {
		return 1
	}
	if !flag.Parsed() {
		flag.Parse()
	}
	// Without the log of what the tests have read, go test does not cache the result.
	for name, value := range map[string]string{"test.run": "^$", "test.testlogfile": ""} {
		if err := flag.Set(name, value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// Missing returns an error that names the programs that are not on PATH, or nil.
func Missing(programs ...string) error {
	var errs []error
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Program ends the test unless a program is on PATH.
func Program(t testing.TB, name string) {
	t.Helper()
	Met(t, Missing(name))
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
