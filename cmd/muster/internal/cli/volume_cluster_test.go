package cli_test

import (
	"strings"
	"testing"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
)

// TestVolumesAreAskedOfWorkers asks the worker of a cluster, whose executor has no volumes.
func TestVolumesAreAskedOfWorkers(t *testing.T) {
	s := &shell{t, startCluster(t)}
	s.waitForNode()
	if out := s.must("volume", "ls"); !strings.HasPrefix(out, "VOLUME") || strings.Count(out, "\n") != 1 {
		t.Errorf("volume ls prints %q, want only the header", out)
	}
	s.contains(s.fails(cli.ExitNotFound, "", "volume", "rm", "--node", "worker1", "data"), "data")
	s.fails(cli.ExitNotFound, "", "volume", "ls", "--node", "nowhere")
}
