// Package stacks_test deploys compose files with the programs that are built, to a cluster
// on the Docker Engine of this machine. The scripts in testdata are command lines of users.
package stacks_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/engine"
	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/network"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// built is the directory with the programs. TestMain sets it before any test runs.
var built string

func TestMain(m *testing.M) {
	flag.Parse()
	// Scripts wait for containers for most of their time.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	os.Exit(rig.TestsWith(m, "stacks", &built, "executor-docker", "network-overlay"))
}

// waitTimeout bounds what should take moments, on a machine that is busy.
const waitTimeout = 2 * time.Minute

// TestScripts runs each script against one cluster with one worker.
func TestScripts(t *testing.T) {
	need.Answer(t, "docker", "version")
	need.Met(t, network.Missing())
	tag := strings.ToLower(rand.Text()[:6])
	shell := "muster-test/stack-" + tag + ":local"
	engine.LoadFor(t, shell)
	address := startDev(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			free, err := network.FreeAddresses(network.Loopback(), 1)
			if err != nil {
				return err
			}
			// Scripts share a cluster, and not their names.
			env.Setenv("N", "t"+strings.ToLower(rand.Text()[:6]))
			env.Setenv("MUSTER_ADDRESS", address)
			env.Setenv("FREE", free[0])
			env.Setenv("IMAGE", shell)
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("TMPDIR", rig.Dir(t))
			env.Setenv("PATH", built+string(os.PathListSeparator)+env.Getenv("PATH"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "await": await},
	})
}

// startDev starts a cluster that ends with the test, and returns the address of its API.
func startDev(t *testing.T) string {
	t.Helper()
	dir, runtime := rig.Dir(t), rig.Dir(t)
	// Workers mount a tmpfs there that outlives them.
	t.Cleanup(func() {
		if err := unix.Unmount(runtime, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
	c, err := cluster.Start(t.Context(), cluster.Config{
		Binary: filepath.Join(built, "muster"), Dir: dir, Embedded: true, Workers: 1,
		Args: map[string][]string{"dev": {"--heartbeat-misses=15", "--reconnect-grace=6s", "--runtime-dir", runtime}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(cluster.Logs(dir))
		}
	})
	wait.Within(t, waitTimeout, "the node is ready", func(ctx context.Context) error {
		out, err := muster(ctx, c.API, ".", "node", "ls", "--format", "{{.status.state}}")
		if err == nil && !strings.Contains(out, "READY") {
			err = errors.New(out)
		}
		return err
	})
	return c.API
}

// exits expects a command to end with an exit code: exits CODE COMMAND ARGS...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARGS...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		ts.Check(err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// await runs a command until its output matches: await REGEXP COMMAND ARGS...
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: await REGEXP COMMAND ARGS...")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
	defer cancel()
	ts.Check(wait.Until(ctx, func(context.Context) error {
		err := ts.Exec(args[1], args[2:]...)
		if out := ts.ReadFile("stdout"); err != nil || !pattern.MatchString(out) {
			return fmt.Errorf("%q does not match %s: %w\n%s", args[1:], args[0], err, out)
		}
		return nil
	}))
}

// muster runs a command line of muster.
func muster(ctx context.Context, address, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(built, "muster"), args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "MUSTER_ADDRESS="+address)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}
