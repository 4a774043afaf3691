// Package consultest runs real Consul servers for tests: one, or several that form a
// cluster. They store data on disk and use free ports. Tests can kill, pause and restart
// them.
package consultest

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/musterhq/muster/internal/kv/consul"
	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/process"
)

// Server is one Consul server.
type Server struct {
	// Address is the address of its HTTP API.
	Address string
	// Node is its name in the cluster.
	Node    string
	dir     string
	serf    string // the address at which other servers join it
	args    []string
	http    *http.Client
	process *process.Process
}

// Start starts a server that ends with the test. Without a consul program on PATH the test
// fails in CI, and is skipped elsewhere. Settings are more of the server's configuration,
// in HCL.
func Start(t testing.TB, settings ...string) *Server {
	t.Helper()
	s, err := Run(t.TempDir(), settings...)
	needConsul(t, err)
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	s.showLog(t)
	return s
}

// needConsul ends a test whose server did not start.
func needConsul(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, exec.ErrNotFound) {
		need.Met(t, fmt.Errorf("%w: `make bin/consul` builds one", err))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// showLog shows the end of the server's log if the test fails.
func (s *Server) showLog(t testing.TB) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("consul's log ends:\n%s", s.process.Tail())
		}
	})
}

// KV returns a client of the server that is closed with the test.
func (s *Server) KV(t testing.TB) *consul.KV {
	t.Helper()
	kv, err := consul.New(consul.Config{Address: s.Address})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kv.Close() })
	return kv
}

// Run starts a server that stores its data and its log in a directory. The caller stops it.
func Run(dir string, settings ...string) (*Server, error) {
	c, err := RunCluster(dir, []Place{Here()}, settings...)
	if err != nil {
		return nil, err
	}
	return c.servers[0], nil
}

// newServer chooses the ports of a server. The first is the port of its HTTP API, and other
// servers join it at the third.
func newServer(binary, dir, node string, at Place, settings []string) (*Server, error) {
	ports, err := at.freePorts(4)
	if err != nil {
		return nil, err
	}
	port := func(i int) string { return strconv.Itoa(ports[i]) }
	s := &Server{
		Address: net.JoinHostPort(at.Address, port(0)), Node: node, dir: dir, serf: net.JoinHostPort(at.Address, port(2)),
		http: &http.Client{Transport: &http.Transport{DialContext: at.Dial, DisableKeepAlives: true}},
		args: append(at.Command[:len(at.Command):len(at.Command)], binary, "agent", "-server", "-node="+node, "-bind="+at.Address,
			"-client="+at.Address, "-data-dir="+filepath.Join(dir, "data"), "-log-level=warn",
			"-http-port="+port(0), "-server-port="+port(1), "-serf-lan-port="+port(2), "-serf-wan-port=-1",
			"-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port="+port(3),
			// All daemons of a test have one address, from which Consul accepts 200
			// connections by default.
			"-hcl=limits { http_max_conns_per_client = 4000 }",
			"-hcl=performance { raft_multiplier = 1 } connect { enabled = false } disable_update_check = true leave_on_terminate = false",
			// Measurements profile it.
			"-hcl=enable_debug = true"),
	}
	for _, hcl := range settings {
		s.args = append(s.args, "-hcl="+hcl)
	}
	return s, nil
}

// Restart starts the server, after Kill for example, and waits until its cluster
// has a leader and knows this server.
func (s *Server) Restart() error {
	if err := s.Start(); err != nil {
		return err
	}
	return s.waitForLeader()
}

// Start starts the server without waiting until it can be used.
func (s *Server) Start() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("make consul's directory: %w", err)
	}
	p, err := process.Start(process.Config{
		Name: "consul", Log: filepath.Join(s.dir, "consul.log"), Command: s.args,
		// It must not outlive a test program that is killed.
		Attr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return err
	}
	s.process = p
	return nil
}

// PID returns the server's process id, for measurements.
func (s *Server) PID() int { return s.process.PID() }

// Kill kills the server. Its data stays, for Restart.
func (s *Server) Kill() error { return s.process.Kill() }

// Stop ends the server in order.
func (s *Server) Stop() error { return s.process.Stop() }

// Pause stops the server's process with SIGSTOP.
func (s *Server) Pause() error { return s.process.Signal(syscall.SIGSTOP) }

// Resume lets a paused server continue.
func (s *Server) Resume() error { return s.process.Signal(syscall.SIGCONT) }
