package docker_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/musterhq/muster/test/kit/engine"
	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/wait"
)

// TestDockerCommandsWorkUnmodified runs the scripts with both docker commands, against
// Muster and against Docker's own swarm mode. A line that expects a difference begins with
// [muster] or [swarm].
func TestDockerCommandsWorkUnmodified(t *testing.T) {
	all := commands(t)
	for _, c := range all {
		out, err := exec.CommandContext(t.Context(), c.path, "--version").CombinedOutput()
		if err == nil && !strings.HasPrefix(string(out), "Docker version "+c.version) {
			err = fmt.Errorf("want version %s: %s", c.version, out)
		}
		need.Met(t, err)
	}
	s, swarm := start(t), startSwarm(t)
	var servers []server
	for _, c := range all {
		servers = append(servers, server{"muster", s.socket, s.image, c}, server{"swarm", swarm, engine.Image, c})
	}
	t.Run("together", func(t *testing.T) {
		for _, at := range servers {
			t.Run(at.name+"/"+at.command.name, func(t *testing.T) {
				t.Parallel()
				at.run(t, "testdata/together")
			})
		}
	})
	// These change what all tasks share.
	for _, at := range servers {
		t.Run("alone/"+at.name+"/"+at.command.name, func(t *testing.T) { at.run(t, "testdata/alone") })
	}
}

// server is what a script talks to, and with which command.
type server struct {
	name, host, image string
	command           command
}

// run runs the scripts of a directory.
func (at server) run(t *testing.T, dir string) {
	testscript.Run(t, testscript.Params{
		Dir: dir,
		Setup: func(env *testscript.Env) error {
			// Scripts share a cluster, and not their names.
			env.Setenv("N", "t"+strings.ToLower(rand.Text()[:6]))
			env.Setenv("DOCKER_HOST", at.host)
			env.Setenv("IMAGE", at.image)
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("CLI", at.command.path)
			env.Setenv("SUBNET", at.command.subnet)
			return nil
		},
		Condition: func(word string) (bool, error) {
			switch word {
			case "muster", "swarm":
				return word == at.name, nil
			case "debian", "current":
				return word == at.command.name, nil
			}
			return false, fmt.Errorf("unknown condition %q", word)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"docker": docker, "exits": exits, "await": await, "set": set},
	})
}

// docker runs the docker command of the script: docker ARGS...
func docker(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec(ts.Getenv("CLI"), args...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Check(err)
	}
	if (err != nil) != neg {
		ts.Fatalf("unexpected exit code: %v", err)
	}
	code := 0
	if exit != nil {
		code = exit.ExitCode()
	}
	ts.Setenv("code", strconv.Itoa(code))
}

// exits expects the exit code of the latest docker command: exits CODE
func exits(ts *testscript.TestScript, _ bool, args []string) {
	if got := ts.Getenv("code"); len(args) != 1 || got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args)
	}
}

// await runs a docker command until its output matches: await REGEXP ARGS...
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: await REGEXP ARGS...")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
	defer cancel()
	ts.Check(wait.Until(ctx, func(ctx context.Context) error {
		out, err := run(ctx, ts, args[1:])
		if err == nil && !pattern.MatchString(out) {
			err = errors.New("no match")
		}
		if err != nil {
			return fmt.Errorf("docker %q is awaited to print %s: %w\n%s", args[1:], args[0], err, out)
		}
		return nil
	}))
}

// set puts the output of a docker command into a variable: set NAME ARGS...
func set(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: set NAME ARGS...")
	}
	out, err := run(context.Background(), ts, args[1:])
	if err != nil {
		ts.Fatalf("docker %q: %v\n%s", args[1:], err, out)
	}
	ts.Setenv(args[0], strings.TrimSpace(out))
}

// run runs the docker command of a script beside it.
func run(ctx context.Context, ts *testscript.TestScript, args []string) (string, error) {
	cmd := exec.CommandContext(ctx, ts.Getenv("CLI"), args...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+ts.Getenv("DOCKER_HOST"), "HOME="+ts.Getenv("HOME"), "IMAGE="+ts.Getenv("IMAGE"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// TestScriptsExplainDifferences expects a comment above each line that is for Muster or
// Docker's swarm mode alone.
func TestScriptsExplainDifferences(t *testing.T) {
	files, err := filepath.Glob("testdata/*/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d scripts, %v", len(files), err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		above := ""
		for i, line := range strings.Split(string(text), "\n") {
			if strings.HasPrefix(line, "-- ") {
				break
			}
			differs := strings.HasPrefix(line, "[muster]") || strings.HasPrefix(line, "[swarm]")
			if differs && !strings.HasPrefix(above, "# Differs: ") {
				t.Errorf("%s:%d differs from swarm mode, and no comment \"# Differs: ...\" above says why", f, i+1)
			}
			if !differs {
				above = line
			}
		}
	}
}
