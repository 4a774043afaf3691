package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-plugin"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/handshake"
	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
	"github.com/musterhq/muster/test/kit/wait"
)

// pluginRole is the first argument that makes the test program a plugin.
const pluginRole = "be-a-plugin"

// bePlugin misbehaves in one way.
func bePlugin(how string) {
	switch how {
	case "exits":
		fmt.Fprintln(os.Stderr, "libsomething.so.1: cannot open shared object file")
		os.Exit(7)
	case "newer":
		plugin.Serve(&plugin.ServeConfig{
			HandshakeConfig:  handshake.Config(),
			VersionedPlugins: map[int]plugin.PluginSet{wire.ProtocolVersion + 1: handshake.Versions(nil)[wire.ProtocolVersion]},
			GRPCServer:       plugin.DefaultGRPCServer,
		})
	case "sluggish", "dying":
		tasks, err := null.New(null.Config{StateDir: filepath.Join(sdk.StateDir(os.TempDir()), "tasks"), Kinds: []string{how}})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		sdk.Serve(&bad{Executor: tasks, how: how})
	default:
		fmt.Fprintf(os.Stderr, "there is no plugin that is %q\n", how)
		os.Exit(2)
	}
}

// bad is an executor whose Prepare never returns, or takes its process down.
type bad struct {
	*null.Executor
	how string
}

func (b *bad) Describe(ctx context.Context) (*sdk.Description, error) {
	said, err := b.Executor.Describe(ctx)
	if err == nil {
		said.Name = b.how
	}
	return said, err
}

func (b *bad) Prepare(context.Context, *sdk.Task, sdk.Handle) (sdk.Handle, error) {
	if b.how == "dying" {
		fmt.Fprintln(os.Stderr, "out of luck")
		os.Exit(9)
	}
	select {}
}

// badPlugins are files of plugins that become the test program.
func badPlugins(t *testing.T, hows ...string) map[string]string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, how := range hows {
		files[how] = fmt.Sprintf("#!/bin/sh\nexec %s %s %s\n", self, pluginRole, how)
	}
	return files
}

// pluginLine waits until `muster plugin ls` says something of a plugin.
func (s *site) pluginLine(t *testing.T, name string, words ...string) {
	t.Helper()
	wait.Within(t, runTimeout, fmt.Sprintf("plugin ls says of %s: %q", name, words), func(context.Context) error {
		list := s.ok(t, "plugin", "ls", "--format", "{{.executor.name}} {{.executor.health}} {{.executor.message}}")
		for line := range strings.Lines(list) {
			if !strings.HasPrefix(line, name+" ") {
				continue
			}
			for _, w := range words {
				if !strings.Contains(line, w) {
					return fmt.Errorf("it says %q", line)
				}
			}
			return nil
		}
		return fmt.Errorf("it says\n%s", list)
	})
}

// TestBadPlugins: users of a broken plugin see why, and others do not
// notice.
func TestBadPlugins(t *testing.T) {
	t.Parallel()
	s := startSite(t, siteConfig{embedded: true, devWorkers: 1, plugins: badPlugins(t, "exits", "newer", "sluggish", "dying")})
	s.ok(t, "service", "create", "--name", "good", "--kind", "process", "--timeout", "2m", "--", "sleep", "1000000")
	good := s.awaitRunning(t, "good", 1)
	t.Run("all at once", func(t *testing.T) {
		for name, test := range map[string]func(*site, *testing.T){
			"exits at once": (*site).pluginExits, "speaks a newer protocol": (*site).pluginIsNewer,
			"hangs in Prepare": (*site).pluginHangs, "dies in Prepare": (*site).pluginDies,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(s, t)
			})
		}
	})
	s.sameRuns(t, good, s.awaitRunning(t, "good", 1))
	for _, executor := range []string{"process", "null"} {
		s.pluginLine(t, executor, " HEALTHY")
	}
	s.removeService(t, "good")
	s.awaitNoTasks(t)

	// The cluster ends though a plugin hangs.
	s.ok(t, "service", "create", "--name", "slow", "--kind", "sluggish", "--detach")
	s.awaitPS(t, "slow", "Preparing")
	dev := s.Process("dev")
	if err := dev.Stop(); err != nil {
		t.Fatal(err)
	}
	if code := dev.ExitCode(); code != 0 {
		t.Errorf("muster dev ended with code %d", code)
	}
}

func (s *site) pluginExits(t *testing.T) {
	s.pluginLine(t, "exits", "UNHEALTHY", "exit status 7", "libsomething.so.1: cannot open shared object file")
}

func (s *site) pluginIsNewer(t *testing.T) {
	s.pluginLine(t, "newer", "UNHEALTHY", "version", fmt.Sprint(wire.ProtocolVersion+1))
}

func (s *site) pluginHangs(t *testing.T) {
	const why = "executor sluggish has not answered to prepare within 10s"
	s.createSays(t, why, "--name", "slow", "--kind", "sluggish")
	s.awaitPS(t, "slow", "Preparing", why)
	if got := s.muster(t, "service", "scale", "slow=1", "--timeout", "3s"); got.code != 6 || !strings.Contains(got.errs, "muster service ps slow") {
		t.Errorf("scale: %s\nwant exit code 6, and what to do next", got)
	}
	// The worker has time for others.
	s.ok(t, "service", "create", "--name", "quick", "--kind", "null", "--replicas", "3", "--timeout", "2m")
	s.removeService(t, "quick")
	s.removeService(t, "slow")
}

func (s *site) pluginDies(t *testing.T) {
	const why = "executor dying: plugin's process ended: exit status 9"
	s.createSays(t, why, "--name", "doomed", "--kind", "dying")
	s.awaitPS(t, "doomed", why)
	s.pluginLine(t, "dying", "UNHEALTHY", "exit status 9")
	s.removeService(t, "doomed")
}

// createSays has a service created whose tasks cannot run, waits until the command
// says why, and interrupts it.
func (s *site) createSays(t *testing.T, why string, args ...string) {
	t.Helper()
	create := s.begin(t, "create-"+args[1], append([]string{"service", "create"}, args...)...)
	wait.Within(t, runTimeout, "create says why the tasks do not run", func(context.Context) error {
		lines, err := create.lines()
		if err == nil && !strings.Contains(strings.Join(lines, "\n"), why) {
			err = fmt.Errorf("it says %q, not %q", lines, why)
		}
		return err
	})
	create.end(t)
}

// awaitPS waits until `muster service ps` says something of a service's tasks.
func (s *site) awaitPS(t *testing.T, service string, words ...string) {
	t.Helper()
	wait.Within(t, runTimeout, fmt.Sprintf("ps says of %s: %q", service, words), func(context.Context) error {
		ps := s.ok(t, "service", "ps", "--no-trunc", service)
		for _, w := range words {
			if !strings.Contains(ps, w) {
				return fmt.Errorf("it says\n%s", ps)
			}
		}
		return nil
	})
}

// removalTimeout bounds the removal of a service's tasks, also where their
// executor does not work: the worker may pause for half a minute before it starts
// that once more.
const removalTimeout = 2 * time.Minute

// removeService removes a service, and waits until no task of it is left.
func (s *site) removeService(t *testing.T, service string) {
	t.Helper()
	resp, err := s.client.GetService(t.Context(), &musterv1.GetServiceRequest{Service: service})
	if err != nil {
		t.Fatal(err)
	}
	s.ok(t, "service", "rm", service)
	wait.Within(t, removalTimeout, "nothing of "+service+" is left", func(ctx context.Context) error {
		all, err := s.listTasks(ctx, "")
		if err != nil {
			return err
		}
		for _, task := range all {
			if task.ServiceId == resp.Service.Id {
				return fmt.Errorf("there is %s, %s (desired %s) %s", task.Name, task.Status.GetState(), task.DesiredState, task.Status.GetError())
			}
		}
		return nil
	})
}
