package cli_test

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
)

func TestConfigCommands(t *testing.T) {
	s := &shell{t, startCluster(t, "schedulerd", "orchestratord", "allocatord")}
	s.waitForNode()
	file := filepath.Join(t.TempDir(), "nginx.conf")
	if err := os.WriteFile(file, []byte("worker_processes 1;\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(s.must("config", "create", "--label", "team=web", "nginx.conf", file))
	out, errs, code := s.run("from stdin", "config", "create", "settings", "-")
	if code != 0 {
		t.Fatalf("create from standard input: exit code %d: %s", code, errs)
	}
	settings := strings.TrimSpace(out)

	s.contains(s.must("config", "ls"), "NAME", "SIZE", "nginx.conf", "20B", "settings", "10B")
	if got := strings.Fields(s.must("config", "ls", "-q")); !slices.Equal(got, []string{id, settings}) {
		t.Errorf("config ls -q: %q, want the ids in order of name: %q", got, []string{id, settings})
	}
	for want, filter := range map[string]string{"nginx.conf": "label=team=web", "settings": "label=!team"} {
		if got := strings.TrimSpace(s.must("config", "ls", "--filter", filter, "--format", "{{.spec.name}}")); got != want {
			t.Errorf("config ls --filter %s: %q, want %q", filter, got, want)
		}
	}
	if got := strings.TrimSpace(s.must("config", "inspect", "NGINX.conf", "--format", "{{.spec.data}}")); got != base64.StdEncoding.EncodeToString([]byte("worker_processes 1;\n")) {
		t.Errorf("data: %q", got)
	}
	s.contains(s.must("config", "inspect", "settings", id), `"name": "settings"`, `"name": "nginx.conf"`)

	s.contains(s.must("config", "update", "--label-add", "stage=test", "--label-rm", "team", "nginx.conf"), "nginx.conf")
	s.contains(s.must("config", "inspect", id, "--format", "{{json .spec.labels}}"), `{"stage":"test"}`)
	s.contains(s.fails(cli.ExitUsage, "", "config", "update", "nginx.conf"), "--label-add")

	for _, tt := range []struct {
		words []string
		want  string
	}{
		{[]string{"config", "inspect", "ng"}, "nginx.conf"}, {[]string{"config", "rm", "settings", ""}, "nginx.conf"},
		{[]string{"config", "ls", "--filter", "name=se"}, "name=settings"},
	} {
		if got, _ := s.complete(tt.words...); !slices.Equal(got, []string{tt.want}) {
			t.Errorf("muster %s<TAB>: %q, want %q", strings.Join(tt.words, " "), got, tt.want)
		}
	}

	if got, _ := s.complete("events", "--kind", ""); !slices.Contains(got, "config") {
		t.Errorf("muster events --kind <TAB>: %q, want config among it", got)
	}

	s.contains(s.fails(cli.ExitConflict, "", "config", "create", "Settings", file), "already exists")
	s.contains(s.fails(cli.ExitUsage, "", "config", "create", "empty", "-"), "spec.data", "1 byte to 1000 KiB")
	s.contains(s.fails(cli.ExitUsage, strings.Repeat("x", 1000<<10+1), "config", "create", "large", "-"), "1000 KiB")
	s.contains(s.fails(cli.ExitUsage, "", "config", "create", "missing", filepath.Join(t.TempDir(), "no")), "no such file")
	s.contains(s.fails(cli.ExitUsage, "", "config", "create", "a/b", file), "spec.name")
	s.contains(s.fails(cli.ExitNotFound, "", "config", "rm", "nginx.conf", "other"), `there is no config "other"`)
	if out := s.must("config", "ls", "-q"); strings.TrimSpace(out) != settings {
		t.Errorf("after rm: %q, want %q", out, settings)
	}
}
