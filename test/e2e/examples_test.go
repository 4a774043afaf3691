package e2e_test

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/musterhq/muster/test/kit/need"
)

// TestRESTSession runs the session by curl that the examples have, which checks
// each answer itself.
func TestRESTSession(t *testing.T) {
	t.Parallel()
	need.Program(t, "curl")
	s := startSite(t, siteConfig{embedded: true, devWorkers: 1})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "../../examples/rest/session.sh")
	cmd.Env = append(os.Environ(), "MUSTER_REST=http://"+s.REST)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("the session ends with %v:\n%s", err, out)
	}
	s.awaitNoTasks(t)
}
