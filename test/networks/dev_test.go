package networks_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/network"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// inventory prints what programs of Muster leave on a machine.
const inventory = `ls /run/netns; nft list tables; iptables -S DOCKER-USER; ip -o link | grep -v ' lo:' || true`

// TestDevInMemoryLeavesNoNetworks: nothing of a network is left on the machine when a
// cluster in memory ends, however it ends.
func TestDevInMemoryLeavesNoNetworks(t *testing.T) {
	need.Met(t, network.Missing())
	need.Program(t, "iptables")
	for name, end := range map[string]syscall.Signal{"interrupted": syscall.SIGINT, "terminal closed": syscall.SIGHUP, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			m := newLoneMachine(t)
			before := m.run("sh", "-c", "mkdir -p /run/netns && mount -t tmpfs none /run/netns && ip link set lo up && iptables -N DOCKER-USER && "+inventory)
			dev := m.command(filepath.Join(m.bin, "muster"), "dev", "--workers", "2")
			var log bytes.Buffer
			dev.Stdout, dev.Stderr = &log, &log
			dev.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			ok(t, dev.Start())
			t.Cleanup(func() {
				_ = dev.Process.Kill()
				_ = dev.Wait()
				if t.Failed() {
					t.Log(log.String())
				}
			})
			wait.Within(t, waitTimeout, "two nodes are ready", func(context.Context) error {
				out, err := m.try(filepath.Join(m.bin, "muster"), "node", "ls")
				if err == nil && strings.Count(out, "Ready") < 2 {
					err = errors.New(out)
				}
				return err
			})
			m.run(filepath.Join(m.bin, "muster"), "network", "create", "back")
			m.run(filepath.Join(m.bin, "muster"), "service", "create", "--name", "sleeper", "--mode", "global", "--kind", "process",
				"--network", "back", "--publish", "8080:80", "--timeout", "2m", "--", "sleep", "1000000")
			during := m.run("sh", "-c", inventory)
			for _, part := range []string{"muster-", "table ip muster-", "-A DOCKER-USER", ": mu"} {
				if !strings.Contains(during, part) {
					t.Fatalf("the cluster has set up no %q, but this:\n%s", part, during)
				}
			}
			ok(t, dev.Process.Signal(end))
			wait.Within(t, waitTimeout, "nothing is left", func(context.Context) error {
				if after := m.run("sh", "-c", inventory); after != before {
					return fmt.Errorf("there is:\n%s", after)
				}
				return nil
			})
		})
	}
}

// loneMachine has a network and mounts of its own, and nothing in its network but lo.
type loneMachine struct {
	t   *testing.T
	pid int
	bin string
}

func newLoneMachine(t *testing.T) *loneMachine {
	t.Helper()
	holder := exec.Command("unshare", "--net", "--mount", "sh", "-c", "echo; exec sleep infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	made, err := holder.StdoutPipe()
	ok(t, err)
	ok(t, holder.Start())
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	// Once the shell runs, the namespaces are there.
	_, err = made.Read(make([]byte, 1))
	ok(t, err)
	m := &loneMachine{t: t, pid: holder.Process.Pid, bin: filepath.Join(t.TempDir(), "bin")}
	ok(t, rig.Install(built, m.bin))
	return m
}

// command returns a command that runs on the machine.
func (m *loneMachine) command(args ...string) *exec.Cmd {
	return exec.CommandContext(context.WithoutCancel(m.t.Context()), "nsenter",
		append([]string{"--target", strconv.Itoa(m.pid), "--net", "--mount", "--"}, args...)...)
}

func (m *loneMachine) try(args ...string) (string, error) {
	out, err := m.command(args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func (m *loneMachine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	ok(m.t, err)
	return out
}
