package networks_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/network"
	"github.com/musterhq/muster/test/kit/wait"
)

// TestResetLeavesNothingOfANode: a worker that was stopped leaves its tasks and networks
// for its next start; "workerd reset" removes them, but not while the worker runs.
func TestResetLeavesNothingOfANode(t *testing.T) {
	need.Met(t, network.Missing())
	need.Program(t, "iptables")
	m := newLoneMachine(t)
	before := m.run("sh", "-c", "mkdir -p /run/netns && mount -t tmpfs none /run/netns && ip link set lo up && iptables -N DOCKER-USER && "+inventory)
	muster, data := filepath.Join(m.bin, "muster"), t.TempDir()
	start := func(args ...string) func() {
		t.Helper()
		cmd := m.command(append([]string{muster}, args...)...)
		var log bytes.Buffer
		cmd.Stdout, cmd.Stderr = &log, &log
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		ok(t, cmd.Start())
		stop := func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
		}
		t.Cleanup(func() {
			stop()
			if t.Failed() {
				t.Log(log.String())
			}
		})
		return stop
	}
	start("dev", "--workers", "0")
	stop := start("workerd", "--data-dir", data, "--ops-listen=", "--data-path-addr", "127.0.0.1")
	wait.Within(t, waitTimeout, "the node is ready", func(context.Context) error {
		out, err := m.try(muster, "node", "ls")
		if err == nil && !strings.Contains(out, "Ready") {
			err = errors.New(out)
		}
		return err
	})
	m.run(muster, "network", "create", "back")
	m.run(muster, "service", "create", "--name", "sleeper", "--kind", "process", "--network", "back", "--timeout", "2m",
		"--", "sh", "-c", "echo $$ >"+data+"/pid; exec sleep 1000000")
	pid, err := os.ReadFile(filepath.Join(data, "pid"))
	ok(t, err)
	process := "/proc/" + strings.TrimSpace(string(pid))

	if out, err := m.try(muster, "workerd", "reset", "--force", "--data-dir", data); err == nil || !strings.Contains(out, "is in use") {
		t.Errorf("reset beside the worker: %v %s", err, out)
	}
	stop()
	if out, err := m.try(muster, "workerd", "reset", "--data-dir", data); err == nil || !strings.Contains(out, "--force") {
		t.Errorf("reset without an answer: %v %s", err, out)
	}
	if _, err := os.Stat(process); err != nil {
		t.Errorf("the task ended before the reset: %v", err)
	}
	if during := m.run("sh", "-c", inventory); !strings.Contains(during, "muster-") {
		t.Errorf("the stopped worker has left no networks:\n%s", during)
	}
	m.run(muster, "workerd", "reset", "--force", "--data-dir", data)
	if after := m.run("sh", "-c", inventory); after != before {
		t.Errorf("after the reset there is:\n%s", after)
	}
	if _, err := os.Stat(process); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the task runs on: %v", err)
	}
	none := t.TempDir()
	if out, err := m.try(muster, "workerd", "reset", "--force", "--data-dir", none); err == nil || !strings.Contains(out, fmt.Sprintf("no worker has used %s", none)) {
		t.Errorf("reset of a directory without a node: %v %s", err, out)
	}
}
