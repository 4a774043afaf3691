//go:build linux

// Package engine runs Docker Engines of a test's own, which can be killed without touching
// the machine's Engine. Each has its own data, containers and socket. It needs root, the
// program dockerd, and a static busybox.
package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/test/kit/network"
	"github.com/musterhq/muster/test/kit/process"
)

// Image is an image in every engine: a shell and sleep.
const Image = "muster-test/shell:local"

// startTimeout bounds an engine's start, and its end in order.
const startTimeout = 2 * time.Minute

// Engine is a Docker Engine.
type Engine struct {
	dir  string
	args []string
	// host is nil for an engine without a network.
	host    *network.Host
	process *process.Process
	api     *client.Client
}

// Missing returns an error if the machine cannot run an engine.
func Missing() error {
	var errs []error
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("only root may start a Docker Engine"))
	}
	for _, program := range []string{"dockerd", "containerd", "busybox"} {
		if _, err := exec.LookPath(program); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// noNetwork are the arguments of an engine without a network.
var noNetwork = []string{"--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"}

// New returns an engine in a directory. The directory's path must be short, because it
// holds sockets. More arguments are passed to dockerd. The caller closes the engine.
func New(dir string, args ...string) (*Engine, error) {
	e := &Engine{dir: dir, args: append([]string{
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--host", "unix://" + filepath.Join(dir, "socket"),
	}, append(noNetwork, args...)...)}
	var err error
	e.api, err = client.NewClientWithOpts(client.WithHost(e.Host()), client.WithAPIVersionNegotiation())
	return e, err
}

// NewOn is New for an engine on a host of a network, with the bridges and the firewall of
// that host.
func NewOn(host *network.Host, dir string, args ...string) (*Engine, error) {
	e, err := New(dir)
	if err != nil {
		return nil, err
	}
	e.host, e.args = host, append(e.args[:len(e.args)-len(noNetwork):len(e.args)-len(noNetwork)], args...)
	return e, nil
}

// Host is the value of DOCKER_HOST for it.
func (e *Engine) Host() string { return "unix://" + filepath.Join(e.dir, "socket") }

// Start starts the engine, again after it was killed, and waits until it answers. An engine
// whose containerd takes more than 15 s to start gives up and is started again, as service
// managers do.
func (e *Engine) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := e.startOnce(ctx)
		if err == nil {
			return Load(ctx, e.api, Image)
		}
		if !errors.Is(err, errGaveUp) || ctx.Err() != nil {
			return err
		}
		if pid, err := e.containerd(); err == nil && !runs(pid) {
			if err := os.Remove(e.containerdFile()); err != nil {
				return fmt.Errorf("forget the engine's containerd: %w", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

var errGaveUp = errors.New("dockerd has ended")

func (e *Engine) startOnce(ctx context.Context) error {
	command := append([]string{"dockerd"}, e.args...)
	attributes := &syscall.SysProcAttr{Setpgid: true}
	if e.host != nil {
		command = append(e.host.Command(), command...)
	} else {
		// In a network namespace of its own: an engine without a bridge removes docker0,
		// which may be that of the machine's Engine.
		attributes.Unshareflags = unix.CLONE_NEWNET
	}
	p, err := process.Start(process.Config{Name: "dockerd", Log: filepath.Join(e.dir, "log"), Command: command, Attr: attributes})
	if err != nil {
		return err
	}
	e.process = p
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := e.api.Ping(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.Done():
			return fmt.Errorf("%w: %s", errGaveUp, p.Tail())
		case <-ctx.Done():
			return fmt.Errorf("dockerd does not answer: %w: %s", err, p.Tail())
		}
	}
}

// Kill ends the engine with SIGKILL. Its containers keep running, because they have
// processes and shims of their own. The engine's containerd dies with it. Kill waits for
// that: an engine that starts while the old containerd is dying would wait for it, give up
// after 15 s, and rely on its service manager.
func (e *Engine) Kill() error {
	pid, err := e.containerd()
	if err != nil {
		return err
	}
	if err := e.process.Kill(); err != nil {
		return err
	}
	for began := time.Now(); runs(pid); <-time.After(time.Millisecond) {
		if time.Since(began) > startTimeout {
			return fmt.Errorf("the engine's containerd, process %d, outlives it", pid)
		}
	}
	// Without a parent that reaps the process, its id is still taken.
	return os.Remove(e.containerdFile())
}

func (e *Engine) containerdFile() string {
	return filepath.Join(e.dir, "exec", "containerd", "containerd.pid")
}

// containerd returns the process id of the engine's containerd.
func (e *Engine) containerd() (int, error) {
	content, err := os.ReadFile(e.containerdFile())
	if err != nil {
		return 0, fmt.Errorf("find the engine's containerd: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return 0, fmt.Errorf("find the engine's containerd: %w", err)
	}
	return pid, nil
}

// runs reports whether a process exists and is not a zombie, which has no program.
func runs(pid int) bool {
	_, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "exe"))
	return err == nil
}

// Containers returns all containers, including those that have ended.
func (e *Engine) Containers(ctx context.Context) ([]container.Summary, error) {
	return e.api.ContainerList(ctx, container.ListOptions{All: true})
}

// Log returns the end of the engine's log.
func (e *Engine) Log() string { return e.process.Tail() }

// Close removes all containers and ends the engine. It starts an engine that was killed to
// do so.
func (e *Engine) Close(ctx context.Context) error {
	if e.process.Ended() {
		if err := e.Start(ctx); err != nil {
			return err
		}
	}
	var errs []error
	all, err := e.Containers(ctx)
	errs = append(errs, err)
	for _, c := range all {
		errs = append(errs, e.api.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true}))
	}
	errs = append(errs, e.process.Stop(), e.api.Close())
	// A killed engine leaves its mounts for the next one.
	mounts, err := filepath.Glob(filepath.Join(e.dir, "exec/netns/*"))
	errs = append(errs, err)
	for _, m := range append(mounts, filepath.Join(e.dir, "data")) {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount what the engine left: %w", err))
		}
	}
	return errors.Join(errs...)
}

// LoadFor gives the Engine of this machine an image with a shell and sleep, which is removed
// with the test.
func LoadFor(t testing.TB, name string) {
	t.Helper()
	api, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	if err := Load(t.Context(), api, name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, err := api.ImageRemove(context.WithoutCancel(t.Context()), name, image.RemoveOptions{Force: true})
		if err := errors.Join(err, api.Close()); err != nil {
			t.Error(err)
		}
	})
}

// Load gives an engine an image with a shell and sleep, unless it has one of that name.
func Load(ctx context.Context, api *client.Client, name string) error {
	if _, err := api.ImageInspect(ctx, name); err == nil {
		return nil
	}
	path, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	binary, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	headers := []*tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "busybox"},
		{Name: "bin/sleep", Typeflag: tar.TypeSymlink, Linkname: "busybox"},
		{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(binary))},
	}
	for _, h := range headers {
		if err := w.WriteHeader(h); err != nil {
			return err
		}
	}
	if _, err := w.Write(binary); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	answer, err := api.ImageImport(ctx, image.ImportSource{Source: &files, SourceName: "-"}, name,
		image.ImportOptions{Changes: []string{"ENV PATH=/bin"}})
	if err != nil {
		return fmt.Errorf("make the image: %w", err)
	}
	_, err = io.Copy(io.Discard, answer)
	return errors.Join(err, answer.Close())
}
