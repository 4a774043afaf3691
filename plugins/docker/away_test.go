package docker_test

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/docker/docker/client"
)

// proxy is an Engine that can be cut off.
func proxy(t *testing.T, c *client.Client) (host string, cut func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "engine.sock")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var open []net.Conn
	isCut := false
	var all sync.WaitGroup
	all.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := c.Dialer()(context.Background())
			if err != nil {
				t.Error(err)
				_ = near.Close()
				return
			}
			mu.Lock()
			open = append(open, near, far)
			if isCut {
				_, _ = near.Close(), far.Close()
			}
			mu.Unlock()
			all.Go(func() { _, _ = io.Copy(far, near); _ = far.Close() })
			all.Go(func() { _, _ = io.Copy(near, far); _ = near.Close() })
		}
	})
	cut = sync.OnceFunc(func() {
		_ = listener.Close()
		mu.Lock()
		isCut = true
		for _, conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	t.Cleanup(cut)
	return "unix://" + path, cut
}

// While the Engine is away nothing is known of a task, and so nothing is said of
// it: all errors are temporary.
func TestAnEngineThatIsAwayIsTemporary(t *testing.T) {
	b := newBench(t, taskSpec(shell("while :; do sleep 0.05; done")))
	c, direct := b.engine, b.Executor
	host, cut := proxy(t, c)
	t.Setenv(client.EnvOverrideHost, host)
	b.Executor = newExecutor(t, b.dir)
	b.run()
	waited := make(chan error, 1)
	go func() {
		_, err := b.Wait(b.Context(), b.ref)
		waited <- err
	}()
	if description, err := b.Describe(t.Context()); err != nil || !description.GetHealthy() {
		t.Errorf("Describe = %v, %v; want healthy", description, err)
	}
	cut()
	for name, err := range map[string]error{
		"Wait, begun before": <-waited,
		"Wait":               func() error { _, err := b.Wait(b.Context(), b.ref); return err }(),
		"Prepare":            func() error { _, err := b.Prepare(b.Context(), b.task, nil); return err }(),
		"Start":              func() error { _, err := b.Start(b.Context(), b.task, nil); return err }(),
		"Shutdown":           func() error { _, err := b.Shutdown(b.Context(), b.ref, nil); return err }(),
		"Terminate":          func() error { _, err := b.Terminate(b.Context(), b.ref); return err }(),
		"Remove":             b.Remove(b.Context(), b.ref),
		"List":               func() error { _, err := b.List(b.Context(), ""); return err }(),
	} {
		if got := fault(t, err); !got.Temporary {
			t.Errorf("%s without an Engine = %+v (%v), want a temporary error", name, got, got)
		}
	}
	if description, err := b.Describe(t.Context()); err != nil || description.GetHealthy() || description.GetMessage() == "" {
		t.Errorf("Describe = %v, %v; want unhealthy, and why", description, err)
	}
	if left := containers(t, c, b.task.GetId(), false); len(left) != 1 {
		t.Errorf("the container does not run any more: %q", left)
	}
	// The Engine is back; here by another way to it.
	b.Executor = direct
	if status, err := b.Terminate(b.Context(), b.ref); err != nil || status.GetExitCode() != 137 {
		t.Errorf("Terminate = %v, %v", status, err)
	}
}
