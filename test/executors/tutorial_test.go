// Package executors_test holds what is promised to authors of executors: that the
// tutorial's commands work as they stand there, on a real cluster, and that the
// conformance kit passes what ships and the examples.
package executors_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/network"
)

const root = "../.."

// needs are the programs of the tutorial.
func needs(t *testing.T) {
	t.Helper()
	for _, program := range []string{"make", "bash", "sha256sum", "pidof", "protoc", "grpc_python_plugin", "openssl"} {
		need.Program(t, program)
	}
	need.Answer(t, "/usr/bin/python3", "-c", "import grpc")
}

// programs makes an empty directory for what is built. Others must not be able to
// write to it, and a socket's path must be short.
func programs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "muster-ex-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// run runs a script of the shell in the repository, and ends what it leaves.
func run(t *testing.T, script string, env ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euxo", "pipefail", "-c", script)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 20 * time.Second
	group := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.Cancel = group
	out, err := cmd.CombinedOutput()
	if err != nil {
		_ = group()
		t.Fatalf("the commands end with %v:\n%s", err, out)
	}
}

// TestTutorial runs all commands of docs/executors.md, in one shell: from nothing
// to a task of an executor that was installed, pinned, killed and upgraded while
// the worker ran. Only where the programs lie, and the ports, are the test's.
func TestTutorial(t *testing.T) {
	t.Parallel()
	needs(t)
	text, err := os.ReadFile(filepath.Join(root, "docs/executors.md"))
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		script.WriteString(block[1])
	}
	api, dir := network.FreeAddress(t), programs(t)
	dev := fmt.Sprintf("muster dev --listen %s --rest-listen %s --ops-listen %s --dispatcher-listen %s", api, network.FreeAddress(t), network.FreeAddress(t), network.FreeAddress(t))
	adapted := strings.NewReplacer(
		"make build", "make build BIN="+dir,
		"$PWD/bin/", dir+"/",
		"bin/muster dev", dir+"/"+dev,
		"bin/", dir+"/",
	).Replace(script.String())
	if strings.Count(adapted, dev) != 1 || strings.Count(adapted, "until ") < 5 {
		t.Fatalf("the tutorial's commands are not found:\n%s", adapted)
	}
	run(t, adapted, "MUSTER_ADDRESS="+api)
}
