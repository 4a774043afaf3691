// Package chart holds the Helm chart to what it promises: what it renders, what it
// refuses, that Kubernetes takes it, and that Muster's programs understand the
// arguments that they are given.
package chart

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	chartDir = "../../charts/muster"
	// kubeVersion is that of the API server in tools/kubernetes.
	kubeVersion = "v1.36.3"
	// limit bounds one call of a program; it is for machines under load.
	limit = 4 * time.Minute
)

// sets are the value sets in testdata/values.
func sets(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/values/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("value sets: %v, %v", files, err)
	}
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".yaml"))
	}
	return names
}

// program finds one of the project's programs: bin/NAME, or one that is installed.
func program(t *testing.T, name string) string {
	t.Helper()
	if path, err := filepath.Abs("../../bin/" + name); err == nil {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not there; `make bin/%s` builds it: %v", name, name, err)
	}
	return path
}

// run runs a program and returns what it wrote to its two outputs.
func run(t *testing.T, name string, args ...string) (out, errs string, err error) {
	t.Helper()
	return runWith(t, filepath.Join(t.TempDir(), "none"), name, args...)
}

// runWith is the same with a file that says where Kubernetes is.
func runWith(t *testing.T, kubeconfig, name string, args ...string) (out, errs string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(t, name), args...)
	// Helm keeps files in its user's folders.
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "HOME="+home, "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home, "KUBECONFIG="+kubeconfig)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	return stdout.String(), stderr.String(), err
}

// render renders the chart with a value set.
func render(t *testing.T, set string, more ...string) string {
	t.Helper()
	args := append([]string{"template", "muster", chartDir, "--namespace", "muster", "--kube-version", kubeVersion, "--values", "testdata/values/" + set + ".yaml"}, more...)
	out, errs, err := run(t, "helm", args...)
	if err != nil {
		t.Fatalf("helm template with %s: %v\n%s", set, err, errs)
	}
	return out
}

// pod is a pod that the chart makes, or has made.
type pod struct {
	// kind and name are those of the object that it is in.
	kind, name string
	spec       corev1.PodSpec
}
