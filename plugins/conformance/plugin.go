package conformance

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/handshake"
)

// Plugin is a plugin's process, started as a worker starts it, that a test can kill
// and start again.
type Plugin struct {
	t   T
	cmd func() *exec.Cmd

	mu      sync.Mutex
	process *os.Process
	client  *plugin.Client
	service executorv1.ExecutorServiceClient
	network networkv1.NetworkServiceClient
}

// StartProgram starts a program as a plugin, with the given variables and a minimal
// environment. It ends with the test.
func StartProgram(t T, command []string, env ...string) *Plugin {
	t.Helper()
	// A killed process leaves its socket behind.
	sockets, err := shortTempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(sockets); err != nil {
			t.Error(err)
		}
	})
	p := &Plugin{t: t, cmd: func() *exec.Cmd {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + sockets}, env...)
		return cmd
	}}
	t.Cleanup(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.client != nil && !ended(p.client) {
			t.Error(held)
		}
	})
	p.Start()
	return p
}

// longestTemp is the longest path of a temporary directory for sockets. The path of a
// socket has at most 103 bytes on every system. The names beneath the directory take
// up to 64 of them.
const longestTemp = 39

// shortTempDir makes a temporary directory whose path leaves room for sockets. It is
// in /tmp if the path of the usual place is too long.
func shortTempDir() (string, error) {
	temp := os.TempDir()
	if len(temp) > longestTemp && runtime.GOOS != "windows" {
		temp = "/tmp"
	}
	return os.MkdirTemp(temp, "muster-test-")
}

// endTime is how long the end of a process may take.
const endTime = 15 * time.Second

// Service returns a client of the executor's present process.
func (p *Plugin) Service() executorv1.ExecutorServiceClient {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.service
}

// Network returns a client of the network plugin's present process.
func (p *Plugin) Network() networkv1.NetworkServiceClient {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.network
}

// Kill kills the process with SIGKILL and returns when it is gone.
func (p *Plugin) Kill() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	// It may have ended already.
	if p.process != nil {
		_ = p.process.Kill()
	}
	if !ended(p.client) {
		p.t.Fatal(held)
	}
}

// held is the reason why the end of a process is not noticed.
const held = "what the executor has started holds its standard output or error open: tasks need their own"

// ended ends a process, and reports whether everything that belongs to it has ended then.
// go-plugin waits for the end of its output without limit.
func ended(client *plugin.Client) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		client.Kill()
	}()
	timer := time.NewTimer(endTime)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// Restart kills the process and starts it again.
func (p *Plugin) Restart() {
	p.t.Helper()
	p.Kill()
	p.Start()
}

// Start starts the process. It must not be running.
func (p *Plugin) Start() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	cmd := p.cmd()
	p.client = plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  handshake.Config(),
		VersionedPlugins: handshake.Versions(nil),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		Cmd:              cmd,
		AutoMTLS:         true,
		SkipHostEnv:      true,
		Logger:           hclog.NewNullLogger(),
		Stderr:           &testLog{t: p.t},
	})
	protocol, err := p.client.Client()
	if err != nil {
		p.t.Fatalf("start the plugin: %v", err)
	}
	p.process = cmd.Process
	if p.service, err = handshake.Dispense(protocol); err != nil {
		p.t.Fatal(err)
	}
	if p.network, err = handshake.DispenseNetwork(protocol); err != nil {
		p.t.Fatal(err)
	}
}

// testLog writes a plugin's log to the test's log while the test runs.
type testLog struct {
	t T

	mu    sync.Mutex
	ended bool
	once  sync.Once
}

func (l *testLog) Write(line []byte) (int, error) {
	l.once.Do(func() {
		l.t.Cleanup(func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.ended = true
		})
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		l.t.Log(strings.TrimRight(string(line), "\n"))
	}
	return len(line), nil
}

// eventually polls until the answer is yes or the time is over. It is the only place where
// these tests poll, because the effect of another process on the system cannot be awaited
// otherwise.
func eventually(ctx context.Context, within time.Duration, ask func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if ask() {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ask()
		}
	}
}
