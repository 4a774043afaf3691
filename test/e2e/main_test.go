// Package e2e_test runs Muster as a user does: the programs that are built, as
// processes, over a real Consul or as muster dev, spoken to through the command
// line, REST and gRPC alone. It looks at the machine (processes, containers) and
// into the store, to see that what is said is so, and that nothing is left
// behind. It reaches into no daemon.
package e2e_test

import (
	"os"
	"testing"

	"github.com/musterhq/muster/test/kit/rig"
)

// built is the directory with the programs, as `make build` lays them out:
// muster, and its executors in plugins. TestMain sets it before any test runs.
var built string

// TestMain builds the programs once. The test program itself is started again as
// a plugin that misbehaves (see badplugin_test.go).
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == pluginRole {
		bePlugin(os.Args[2])
		return
	}
	os.Exit(rig.TestsWith(m, "e2e", &built, "executor-docker", "executor-null", "executor-process"))
}
