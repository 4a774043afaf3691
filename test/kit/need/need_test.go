package need_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/musterhq/muster/test/kit/need"
)

// asChild has this program run its tests as a package that needs a program.
const asChild = "MUSTER_TESTNEED_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(asChild) != "" {
		os.Exit(need.Main(m, "test/child", "no-such-program"))
	}
	os.Exit(m.Run())
}

// TestPackageWithoutItsProgramsRunsNoTests: go test must not print a mere "ok" for it.
func TestPackageWithoutItsProgramsRunsNoTests(t *testing.T) {
	for ci, wants := range map[string][]string{
		"":  {"SKIP test/child", "no-such-program", "no tests to run", "PASS"},
		"1": {"SKIP test/child", "no-such-program"},
	} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "TestPackage")
		cmd.Env = append(os.Environ(), asChild+"=1", "CI="+ci)
		out, err := cmd.CombinedOutput()
		if (err != nil) != (ci != "") {
			t.Errorf("CI=%q: %v\n%s", ci, err, out)
		}
		for _, want := range wants {
			if !strings.Contains(string(out), want) {
				t.Errorf("CI=%q: the output lacks %q:\n%s", ci, want, out)
			}
		}
	}
}
