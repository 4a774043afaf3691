package compose_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/musterhq/muster/stack/compose"
)

func TestErrorListsEveryUnsupportedKeyWithLine(t *testing.T) {
	_, err := loadText(t, "services:\n  web:\n    image: nginx\n    privileged: true\n    pid: host\n", nil)
	var list *compose.Error
	if !errors.As(err, &list) {
		t.Fatalf("got %v; want a *compose.Error", err)
	}
	want := []compose.Problem{{File: "-", Line: 4, Key: "services.web.privileged", Unsupported: true}, {File: "-", Line: 5, Key: "services.web.pid", Unsupported: true}}
	for i, p := range list.Problems {
		p.Reason = ""
		if i >= len(want) || p != want[i] {
			t.Errorf("problem %d is %+v; want %+v", i, p, want)
		}
	}
	if len(list.Problems) != len(want) || !strings.Contains(err.Error(), "--ignore-unsupported") {
		t.Errorf("got %v; want two problems and the way out", err)
	}
}

// TestDataFilesStayInProject checks that relative paths cannot lead out of the project
// directory, and that absolute ones can.
func TestDataFilesStayInProject(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("KEY=value"), 0o600); err != nil {
		t.Fatal(err)
	}
	project := t.TempDir()
	if err := os.Symlink(secret, filepath.Join(project, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(project, "folder")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(project, "inside"), []byte("KEY=value"), 0o600); err != nil {
		t.Fatal(err)
	}
	up, err := filepath.Rel(project, secret)
	if err != nil {
		t.Fatal(err)
	}
	templates := map[string]string{
		"config":     "services: {a: {image: a, configs: [c]}}\nconfigs: {c: {file: PATH}}",
		"secret":     "services: {a: {image: a, secrets: [c]}}\nsecrets: {c: {file: PATH}}",
		"env_file":   "services: {a: {image: a, env_file: PATH}}",
		"optional":   "services: {a: {image: a, env_file: [{path: PATH, required: false}]}}",
		"label_file": "services: {a: {image: a, label_file: PATH}}",
		"seccomp":    "services: {a: {image: a, security_opt: [\"seccomp=PATH\"]}}",
		"include":    "include: [{path: inside.yaml, env_file: PATH}]\nservices: {a: {image: a}}",
	}
	if err := os.WriteFile(filepath.Join(project, "inside.yaml"), []byte("services: {b: {image: b}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	load := func(text string) error {
		_, err := loadText(t, text, func(o *compose.Options) { o.WorkingDir = project })
		return err
	}
	for key, template := range templates {
		for _, path := range []string{up, "link", "folder/secret", "./x/../" + up} {
			if err := load(strings.ReplaceAll(template, "PATH", path)); err == nil || !strings.Contains(err.Error(), "outside the project directory") {
				t.Errorf("%s: %s: got %v; want a refusal", key, path, err)
			}
		}
		for _, path := range []string{"inside", "./x/../inside"} {
			if err := load(strings.ReplaceAll(template, "PATH", path)); err != nil {
				t.Errorf("%s: %s: got %v; want success", key, path, err)
			}
		}
		if err := load(strings.ReplaceAll(template, "PATH", secret)); err != nil {
			t.Errorf("%s: an absolute path: got %v; want success", key, err)
		}
	}
}

func TestLoadReadsRegularFilesOnly(t *testing.T) {
	for _, path := range []string{"/dev/zero", "/proc/self/mem", "/dev"} {
		_, err := loadText(t, "services: {a: {image: a, configs: [c]}}\nconfigs: {c: {file: "+path+"}}", nil)
		if err == nil {
			t.Errorf("%s was read", path)
		}
	}
}

func TestRemoteFilesAreRefused(t *testing.T) {
	for _, path := range []string{"https://example.com/compose.yaml", "git@github.com:a/b.git", "oci://example.com/a", "github.com/a/b"} {
		for _, text := range []string{"include: [\"PATH\"]\nservices: {a: {image: a}}", "services: {a: {extends: {file: \"PATH\", service: a}}}"} {
			if _, err := loadText(t, strings.ReplaceAll(text, "PATH", path), nil); err == nil || !strings.Contains(err.Error(), "not a local file") {
				t.Errorf("%s: got %v; want a refusal", path, err)
			}
		}
	}
}

func TestSourceHasNoSecrets(t *testing.T) {
	result, err := loadText(t, "services: {a: {image: \"a:${TAG}\", secrets: [s]}}\nsecrets: {s: {environment: PASSWORD}}", func(o *compose.Options) {
		o.Environment = []string{"PASSWORD=canary", "TAG=5"}
	})
	if err != nil {
		t.Fatal(err)
	}
	if string(result.Spec.Secrets[0].Data) != "canary" {
		t.Errorf("the secret has %q; want canary", result.Spec.Secrets[0].Data)
	}
	if source := result.Spec.Source; strings.Contains(source, "canary") || !strings.Contains(source, "image: a:5") {
		t.Errorf("the source is %q; want variables filled in, and no secret", source)
	}
}

func TestIgnoredKeepsPortOfOneAddressClosed(t *testing.T) {
	result, err := loadText(t, "services: {db: {image: a, ports: [\"127.0.0.1:5432:5432\"]}}", func(o *compose.Options) { o.IgnoreUnsupported = true })
	if err != nil {
		t.Fatal(err)
	}
	if ports := result.Spec.Services[0].GetEndpoint().GetPorts(); len(ports) > 0 || len(result.Ignored) != 1 {
		t.Errorf("published %v, ignored %v; want no port, and the key in the list", ports, result.Ignored)
	}
}

func TestExamplesLoad(t *testing.T) {
	for dir, want := range map[string]int{"stack-web": 6, "stack-monitoring": 4} {
		result, err := compose.Load(t.Context(), compose.Options{
			WorkingDir: filepath.Join("../../examples", dir), Environment: []string{"DB_PASSWORD=a", "GRAFANA_PASSWORD=b"},
		})
		if err != nil {
			t.Errorf("%s: %v", dir, err)
			continue
		}
		if len(result.Spec.Services) != want || len(result.Ignored)+len(result.Warnings) > 0 {
			t.Errorf("%s: got %d services, ignored %v, warnings %v; want %d services and nothing else", dir, len(result.Spec.Services), result.Ignored, result.Warnings, want)
		}
	}
}

// TestContradictionsAreListedWithLines checks what compose-go would report one by one, and
// without lines.
func TestContradictionsAreListedWithLines(t *testing.T) {
	_, err := loadText(t, `services:
  a:
    image: a
    networks: [gone]
    volumes: ["gone:/a", "gone2:/b"]
    secrets: [gone]
    configs: [gone]
    depends_on: [gone, off]
    scale: 2
    deploy: {replicas: 3, resources: {limits: {memory: 1g}}}
    mem_limit: 2g
  b: {}
  off: {image: a, profiles: [off]}
`, nil)
	var list *compose.Error
	if !errors.As(err, &list) {
		t.Fatalf("got %v; want a *compose.Error", err)
	}
	got := map[string]int{}
	for _, p := range list.Problems {
		got[p.Key] = p.Line
	}
	for key, line := range map[string]int{
		"services.a.networks.gone": 4, "services.a.volumes.0": 5, "services.a.volumes.1": 5, "services.a.secrets.0": 6, "services.a.configs.0": 7,
		"services.a.depends_on.gone": 8, "services.a.depends_on.off": 8, "services.a.scale": 9, "services.a.mem_limit": 11, "services.b": 12,
	} {
		if got[key] != line {
			t.Errorf("%s is at line %d; want %d\n%v", key, got[key], line, err)
		}
	}
}

// TestNamesOfUsersMayBeginLikeExtensions has names that begin with "x-" where users choose
// them. The parser drops some of them, which must not happen silently.
func TestNamesOfUsersMayBeginLikeExtensions(t *testing.T) {
	for text, want := range map[string]string{
		"services: {x-a: {image: a, privileged: true}}":      "services.x-a.privileged: containers cannot be privileged",
		"services: {x-a: {image: a, privleged: true}}":       "services.x-a.privleged: unknown key",
		"services: {a: {image: a, environment: {x-a: b}}}":   "services.a.environment.x-a: names in a mapping must not begin",
		"services: {a: {image: a, labels: {x-a: b}}}":        "services.a.labels.x-a: names in a mapping must not begin",
		"services: {a: {image: a, labels: [x-a=b]}}":         "",
		"services: {a: {image: a, x-a: {b: c}}}\nx-b: c":     "",
		"services: {a: {image: a, deploy: {x-a: [1, 2]}}}":   "",
		"services: {a: {image: a}}\nnetworks: {x-a: {b: c}}": "networks.x-a.b: unknown key",
	} {
		_, err := loadText(t, text, nil)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
