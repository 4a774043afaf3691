package cli_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
)

func TestSecretCommands(t *testing.T) {
	s := &shell{t, startCluster(t, "schedulerd", "orchestratord", "allocatord")}
	s.waitForNode()
	const canary = "canary-51b0"
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(canary), 0o600); err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(s.must("secret", "create", "--label", "team=web", "db-password", file))
	if out, errs, code := s.run(canary, "secret", "create", "token", "-"); code != 0 {
		t.Fatalf("create from standard input: exit code %d: %s%s", code, out, errs)
	}
	t.Setenv("SECRET_OF_TEST", canary)
	s.must("secret", "create", "--from-env", "SECRET_OF_TEST", "variable")

	out := s.must("secret", "ls")
	s.contains(out, "NAME", "ROTATED", "db-password", "token", "variable")
	inspected := s.must("secret", "inspect", "DB-password", id)
	s.contains(inspected, `"name": "db-password"`, `"rotatedAt"`)
	if strings.Contains(out+inspected, canary) || strings.Contains(inspected, `"data"`) {
		t.Errorf("data is shown: %s%s", out, inspected)
	}
	if got := strings.TrimSpace(s.must("secret", "ls", "--filter", "label=team=web", "--format", "{{.spec.name}}")); got != "db-password" {
		t.Errorf("secret ls --filter: %q", got)
	}
	version := func() string { return s.must("secret", "inspect", "token", "--format", "{{.meta.version}}") }
	before := version()
	s.contains(s.must("secret", "rotate", "token", file), "token")
	if version() == before {
		t.Error("a rotation changes no version")
	}
	s.contains(s.must("secret", "update", "--label-add", "stage=test", "--label-rm", "team", "db-password"), "db-password")
	s.contains(s.must("secret", "inspect", id, "--format", "{{json .spec.labels}}"), `{"stage":"test"}`)
	s.contains(s.must("cluster", "key", "status"), "Sealed with:", "apid", "dispatcherd")
	s.contains(s.must("cluster", "key", "reseal"), "Sealed with:")

	s.contains(s.fails(cli.ExitUsage, "", "secret", "update", "token"), "--label-add", "rotate")
	s.contains(s.fails(cli.ExitUsage, "", "secret", "create", "none"), "--from-env")
	s.contains(s.fails(cli.ExitUsage, "", "secret", "create", "--from-env", "SECRET_OF_TEST", "both", file), "--from-env")
	s.contains(s.fails(cli.ExitUsage, "", "secret", "create", "--from-env", "NOT_THERE_AT_ALL", "none"), "NOT_THERE_AT_ALL")
	s.contains(s.fails(cli.ExitConflict, "", "secret", "create", "Token", file), "already exists")
	s.contains(s.fails(cli.ExitUsage, strings.Repeat("x", 500<<10+1), "secret", "create", "large", "-"), "500 KiB", "secret")
	s.contains(s.fails(cli.ExitNotFound, "", "secret", "rotate", "other", file), `there is no secret "other"`)
	for _, tt := range []struct {
		words []string
		want  string
	}{
		{[]string{"secret", "inspect", "db"}, "db-password"}, {[]string{"secret", "rotate", "to"}, "token"},
		{[]string{"secret", "ls", "--filter", "name=va"}, "name=variable"},
	} {
		if got, _ := s.complete(tt.words...); !slices.Equal(got, []string{tt.want}) {
			t.Errorf("muster %s<TAB>: %q, want %q", strings.Join(tt.words, " "), got, tt.want)
		}
	}
	s.must("secret", "rm", "token", "variable")
	if out := s.must("secret", "ls", "-q"); strings.TrimSpace(out) != id {
		t.Errorf("after rm: %q, want %q", out, id)
	}
}

func TestConfigRotateReplacesData(t *testing.T) {
	s := &shell{t, startCluster(t, "schedulerd", "orchestratord", "allocatord")}
	s.waitForNode()
	if _, errs, code := s.run("one", "config", "create", "app", "-"); code != 0 {
		t.Fatal(errs)
	}
	if out, errs, code := s.run("two", "config", "rotate", "app", "-"); code != 0 || strings.TrimSpace(out) != "app" {
		t.Fatalf("rotate: %d %s%s", code, out, errs)
	}
	if got := strings.TrimSpace(s.must("config", "inspect", "app", "--format", "{{.spec.data}}")); got != "dHdv" {
		t.Errorf("data after: %q", got)
	}
}

// TestServiceUpdateChangesSecretsOfOtherKinds removes and adds them by the names that users know.
func TestServiceUpdateChangesSecretsOfOtherKinds(t *testing.T) {
	s := &shell{t, startCluster(t, "schedulerd", "orchestratord", "allocatord")}
	for _, name := range []string{"old", "new"} {
		if _, errs, code := s.run(name, "secret", "create", name, "-"); code != 0 {
			t.Fatal(errs)
		}
	}
	s.must("service", "create", "--detach", "--name", "job", "--kind", "null", "--payload", "{}", "--secret", "source=old,target=/old")
	s.must("service", "update", "--detach", "--secret-rm", "old", "--secret-add", "new", "job")
	id := strings.TrimSpace(s.must("secret", "inspect", "new", "--format", "{{.id}}"))
	got := s.must("service", "inspect", "job", "--format", "{{range .spec.task.resourceReferences}}{{.id}} {{.file.name}};{{end}}")
	if want := id + " new;"; strings.TrimSpace(got) != want {
		t.Errorf("references after the update: %q, want %q", got, want)
	}
}
