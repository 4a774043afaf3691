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

	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/wire"
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
			HandshakeConfig:  wire.Handshake(),
			VersionedPlugins: map[int]plugin.PluginSet{wire.ProtocolVersion + 1: wire.Versions(nil)[wire.ProtocolVersion]},
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
	eventually(t, runTimeout, fmt.Sprintf("plugin ls says of %s: %q", name, words), func(context.Context) error {
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

// TestBadPlugins: who uses a plugin that is broken is told, and nobody else
// notices.
func TestBadPlugins(t *testing.T) {
	s := startSite(t, siteConfig{embedded: true, devWorkers: 1, plugins: badPlugins(t, "exits", "newer", "sluggish", "dying")})
	s.ok(t, "service", "create", "--name", "good", "--kind", "process", "--timeout", "30s", "--", "sleep", "1000000")
	good := s.awaitRunning(t, "good", 1)

	t.Run("exits at once", func(t *testing.T) {
		s.pluginLine(t, "exits", "UNHEALTHY", "exit status 7", "libsomething.so.1: cannot open shared object file")
	})
	t.Run("speaks a newer protocol", func(t *testing.T) {
		s.pluginLine(t, "newer", "UNHEALTHY", "version", fmt.Sprint(wire.ProtocolVersion+1))
	})
	t.Run("hangs in Prepare", func(t *testing.T) {
		got := s.muster(t, "service", "create", "--name", "slow", "--kind", "sluggish", "--timeout", "2s")
		if got.code != 6 || !strings.Contains(got.errs, "muster service ps slow") {
			t.Errorf("create: %s, want exit code 6 and what to do next", got)
		}
		if ps := s.ok(t, "service", "ps", "slow"); !strings.Contains(ps, "Preparing") {
			t.Errorf("ps says\n%s\nwant that the task is being prepared", ps)
		}
		s.ok(t, "service", "rm", "slow")
		s.awaitGone(t, "slow")
	})
	t.Run("dies in Prepare", func(t *testing.T) {
		got := s.muster(t, "service", "create", "--name", "doomed", "--kind", "dying", "--timeout", "3s")
		if got.code != 6 {
			t.Errorf("create: %s, want exit code 6", got)
		}
		eventually(t, runTimeout, "ps says why the task does not run", func(context.Context) error {
			if ps := s.ok(t, "service", "ps", "--no-trunc", "doomed"); !strings.Contains(ps, "exit status 9") {
				return fmt.Errorf("it says\n%s", ps)
			}
			return nil
		})
		s.pluginLine(t, "dying", "UNHEALTHY", "exit status 9")
		s.ok(t, "service", "rm", "doomed")
		s.awaitGone(t, "doomed")
	})
	s.sameRuns(t, good, s.awaitRunning(t, "good", 1))
	for _, executor := range []string{"process", "null"} {
		s.pluginLine(t, executor, " HEALTHY")
	}
	s.ok(t, "service", "rm", "good")
	s.awaitNoTasks(t)
}

// awaitGone waits until no task of a service is left: those of a service that is
// gone carry its id for a name.
func (s *site) awaitGone(t *testing.T, service string) {
	t.Helper()
	took := eventually(t, runTimeout, "nothing of "+service+" is left", func(ctx context.Context) error {
		all, err := s.listTasks(ctx, "")
		if err != nil {
			return err
		}
		for _, task := range all {
			if task.ServiceName != "good" {
				return fmt.Errorf("there is %s, %s (desired %s) %s", task.Name, task.Status.GetState(), task.DesiredState, task.Status.GetError())
			}
		}
		return nil
	})
	if took > 10*time.Second {
		t.Errorf("that took %v", took)
	}
}
