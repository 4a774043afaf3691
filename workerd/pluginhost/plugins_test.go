package pluginhost_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/plugins/handshake"
	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// role is the first argument that makes the test binary a plugin.
const role = "be-a-plugin"

// TestMain lets the test binary be the plugins that it tests with.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == role {
		bePlugin(os.Args[2])
		return
	}
	if strings.HasPrefix(filepath.Base(os.Args[0]), "muster-executor-") {
		bePlugin("good")
		return
	}
	os.Exit(m.Run())
}

// bePlugin misbehaves in one way.
func bePlugin(how string) {
	switch how {
	case "network":
		_ = os.WriteFile(filepath.Join(sdk.StateDir(""), "pid"), []byte(strconv.Itoa(os.Getpid())), 0o600)
		networksdk.Serve(brokenNetwork{})
	case "good", "better", "sick":
		// As a trace for tests: who this process is, and what it was given.
		dir := sdk.StateDir("")
		_ = os.WriteFile(filepath.Join(dir, "pid"), []byte(strconv.Itoa(os.Getpid())), 0o600)
		_ = os.WriteFile(filepath.Join(dir, "env"), []byte(strings.Join(os.Environ(), "\n")), 0o600)
		e, err := null.New(null.Config{StateDir: filepath.Join(dir, "tasks"), Version: map[string]string{"good": "1.2.3", "better": "2.0.0"}[how]})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if how == "sick" {
			sdk.Serve(&sick{e})
			return
		}
		sdk.Serve(e)
	case "exits":
		fmt.Fprintln(os.Stderr, "libfoo.so.1: cannot open shared object file")
		os.Exit(7)
	case "hangs":
		time.Sleep(time.Hour)
	case "talks":
		fmt.Println("Hello! I am not a plugin at all.")
		time.Sleep(time.Hour)
	case "newer":
		plugin.Serve(&plugin.ServeConfig{
			HandshakeConfig:  handshake.Config(),
			VersionedPlugins: map[int]plugin.PluginSet{wire.ProtocolVersion + 1: handshake.Versions(&mute{})[wire.ProtocolVersion]},
			GRPCServer:       plugin.DefaultGRPCServer,
		})
	case "mute":
		plugin.Serve(&plugin.ServeConfig{
			HandshakeConfig:  handshake.Config(),
			VersionedPlugins: handshake.Versions(&mute{}),
			GRPCServer:       func(o []grpc.ServerOption) *grpc.Server { return grpc.NewServer(o...) },
		})
	case "leaves-child":
		// What a plugin starts may hold its pipes open long after its end.
		cmd := exec.Command("sleep", "30")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(9)
	}
}

// sick says that it cannot work.
type sick struct{ *null.Executor }

func (s *sick) Describe(ctx context.Context) (*sdk.Description, error) {
	d, err := s.Executor.Describe(ctx)
	d.Healthy, d.Message = false, "engine is away"
	return d, err
}

// mute never answers.
type mute struct {
	executorv1.UnimplementedExecutorServiceServer
}

func (*mute) Describe(ctx context.Context, _ *executorv1.DescribeRequest) (*executorv1.DescribeResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// command is the command line of a plugin that behaves in one way.
func command(how string) []string {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return []string{self, role, how}
}

// script puts a plugin into a directory: an executable file that becomes one.
func script(t testing.TB, dir, name, how string) string {
	t.Helper()
	path := filepath.Join(dir, "muster-executor-"+name)
	content := "#!/bin/sh\nexec " + strings.Join(command(how), " ") + "\n"
	// Whatever the umask: others may not write there.
	if err := errors.Join(os.WriteFile(path, []byte(content), 0o700), os.Chmod(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	return path
}

// alive says whether a process exists.
func alive(pid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d/stat", pid))
	return !errors.Is(err, os.ErrNotExist)
}
