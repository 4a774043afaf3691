package cli_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
)

func TestClusterStatus(t *testing.T) {
	s := &shell{t, startCluster(t)}
	s.waitForNode()
	out := s.must("cluster", "status", "--wait", "2m")
	s.contains(out, "Store: embedded", "Nodes: 1: 1 ready", "apid", "orchestratord", "allocatord", "schedulerd", "dispatcherd",
		"v1-test", "Healthy", "16: 0-15", "none")
	shards := s.must("cluster", "status", "--shards")
	if n := strings.Count(shards, "\n"); n != 1+3*16+17+1 {
		t.Errorf("%d lines, want one for each shard:\n%s", n, shards)
	}
	var all []struct {
		Healthy bool
		Daemons []struct {
			Health string
			Shards []struct{ Since string }
			View   struct{ Commits string }
		}
	}
	if err := json.Unmarshal([]byte(s.must("cluster", "status", "--format", "json")), &all); err != nil || len(all) != 1 || !all[0].Healthy {
		t.Fatalf("as JSON: %+v, %v", all, err)
	}
	for _, d := range all[0].Daemons {
		if d.Health != "HEALTHY" || len(d.Shards) == 0 || d.Shards[0].Since == "" || d.View.Commits == "" {
			t.Errorf("instance %+v lacks something", d)
		}
	}
	if got := s.must("cluster", "status", "--format", "{{.healthy}}"); got != "true\n" {
		t.Errorf("template: %q", got)
	}
}

func TestClusterStatusNamesProblems(t *testing.T) {
	s := &shell{t, startCluster(t, "allocatord")}
	s.waitForNode()
	out, errs, code := s.run("", "cluster", "status", "--wait", "4s")
	if code != cli.ExitUnhealthy || !strings.Contains(errs, "no allocatord takes part") || !strings.Contains(out, "schedulerd") {
		t.Errorf("exit code %d, want %d, what is wrong and what is not:\n%s%s", code, cli.ExitUnhealthy, out, errs)
	}
	_, _, code = s.run("", "cluster", "status", "--shards")
	if code != cli.ExitUnhealthy {
		t.Errorf("exit code %d, want %d", code, cli.ExitUnhealthy)
	}
}
