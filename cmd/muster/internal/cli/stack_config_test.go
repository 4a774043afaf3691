package cli_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
)

// nowhere is an address at which no cluster answers.
const nowhere = "127.0.0.1:1"

// writeFiles writes files into a directory of the test and returns the directory.
func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestStackConfigPrintsMergedFilesWithoutSecrets(t *testing.T) {
	t.Setenv("DB_PASSWORD", "canary-7f3a")
	dir := writeFiles(t, map[string]string{
		"compose.yaml": `
services:
  web:
    image: web:${TAG}
    secrets: [db, inline]
    environment: {COLOR: blue}
  debug: {image: tools, profiles: [debug]}
secrets:
  db: {environment: DB_PASSWORD}
  inline: {file: password}
`,
		"more.yaml": "services: {web: {environment: {COLOR: green}}}\n",
		"vars":      "TAG=7\n",
		"password":  "canary-7f3a",
	})
	s := &shell{t, nowhere}
	files := []string{"-c", filepath.Join(dir, "compose.yaml"), "-c", filepath.Join(dir, "more.yaml"), "--env-file", filepath.Join(dir, "vars")}
	yaml := s.must(append([]string{"stack", "config", "shop"}, files...)...)
	s.contains(yaml, "name: shop", "image: web:7", "COLOR: green")
	s.lacks(yaml, "blue", "debug", "canary")
	json := s.must(append([]string{"stack", "config", "--format", "json", "--profile", "debug", "shop"}, files...)...)
	s.contains(json, `"name": "shop_web"`, `"name": "shop_debug"`, `"name": "shop_db"`, `"COLOR=green"`)
	s.lacks(json, "canary", "Y2FuYXJ5") // neither as text nor as base64
	if out := s.must(append([]string{"stack", "config", "--quiet"}, files...)...); out != "" {
		t.Errorf("stack config --quiet printed %q", out)
	}
	// Relative paths start from the project directory.
	out, errs, code := s.run("services: {web: {image: w, configs: [c]}}\nconfigs: {c: {file: vars}}", "stack", "config", "-c", "-", "--project-directory", dir, "--format", "json", "x")
	if code != 0 {
		t.Fatalf("stack config -c - --project-directory: exit code %d: %s", code, errs)
	}
	s.contains(out, `"data": "VEFHPTcK"`)
}

func TestStackConfigNamesFileLineAndKeyOfFaults(t *testing.T) {
	s := &shell{t, nowhere}
	faulty := "services:\n  web:\n    image: web\n    privileged: true\n    ports:\n      - 127.0.0.1:80:80\n"
	s.contains(s.fails(cli.ExitUsage, faulty, "stack", "config", "-c", "-", "shop"), "-:4: services.web.privileged", "-:6: services.web.ports.0.host_ip", "--ignore-unsupported")
	out, errs, code := s.run(faulty, "stack", "config", "-c", "-", "--ignore-unsupported", "--format", "json", "shop")
	if code != 0 {
		t.Fatalf("--ignore-unsupported: exit code %d: %s", code, errs)
	}
	s.contains(errs, "ignored: -:4: services.web.privileged")
	s.contains(out, `"image": "web"`)
	s.contains(s.fails(cli.ExitUsage, "services: {web: {imag: x}}", "stack", "config", "-c", "-", "shop"), "-:1: services.web.imag: unknown key")
	s.contains(s.fails(cli.ExitUsage, "services: {web: {image: $TAG}}", "stack", "config", "-c", "-", "shop"), "image")
	s.contains(s.fails(cli.ExitUsage, faulty, "stack", "config", "-c", "-", "Shop!"), `invalid stack name "Shop!"`)
	s.contains(s.fails(cli.ExitUsage, "", "stack", "config", "-c", filepath.Join(t.TempDir(), "no.yaml")), "no.yaml", "no such file")
	s.contains(s.fails(cli.ExitUsage, faulty, "stack", "config", "-c", "-", "--format", "xml"), "--format", "yaml, json")
	s.contains(s.fails(cli.ExitUsage, "services: {web: {image: w}}", "stack", "config", "-c", "-", "--env-file", "/no/env", "shop"), "env file")
}
