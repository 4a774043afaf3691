// Package executortest makes the rules of package conformance tests of Go's, for
// executors that are tested where they are written.
//
// An author writes a TestMain that calls Main, and a test that calls Run with
// a function that makes a Harness.
package executortest

import (
	"fmt"
	"os"
	"testing"

	"github.com/musterhq/muster/plugins/conformance"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

type (
	// Harness is one executor under test, and the means to look behind its back.
	Harness = conformance.Harness
	// Behavior is what a task of the suite does.
	Behavior = conformance.Behavior
	// Plugin is an executor's process.
	Plugin = conformance.Plugin
)

// Run tries all rules. It calls newHarness for each of them.
func Run(t *testing.T, newHarness func(t *testing.T) *Harness) {
	for _, rule := range conformance.Rules() {
		t.Run(rule.Name, func(t *testing.T) {
			t.Parallel()
			rule.Check(t, newHarness(t))
		})
	}
}

// Main makes a test program serve its executor too: it is its own plugin. With
// it a test needs no other program built, and the race detector watches both
// sides. TestMain must call it. It does not return in a plugin.
func Main(m *testing.M, newExecutor func() (sdk.Executor, error)) int {
	if os.Getenv(wire.CookieKey) != wire.CookieValue {
		return m.Run()
	}
	executor, err := newExecutor()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	sdk.Serve(executor)
	return 0
}

// race makes a plugin in which the race detector finds something end there, so
// that the test fails, and one in which it does not end without lingering.
const race = "halt_on_error=1 atexit_sleep_ms=0"

// StartPlugin starts the test program as a plugin, with the given variables
// beside a bare environment. It ends with the test.
func StartPlugin(t testing.TB, env ...string) *Plugin {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return StartProgram(t, self, env...)
}

// StartProgram starts a program as a plugin, as StartPlugin does.
func StartProgram(t testing.TB, program string, env ...string) *Plugin {
	t.Helper()
	return conformance.StartProgram(t, []string{program}, append([]string{"GOCOVERDIR=" + t.TempDir(), "GORACE=" + race}, env...)...)
}
