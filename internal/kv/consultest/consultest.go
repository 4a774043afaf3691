// Package consultest runs a real Consul server for tests, on disk and on free
// ports, and lets a test kill, pause and restart it.
package consultest

import (
	"context"
	"encoding/json"
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
	"time"

	"github.com/musterhq/muster/internal/kv/consul"
)

// startTimeout bounds the time until a server has a leader.
const startTimeout = 30 * time.Second

// Server is one Consul server.
type Server struct {
	// Address is that of its HTTP API.
	Address string
	dir     string
	args    []string
	cmd     *exec.Cmd
	ended   chan struct{}
}

// Start starts a server that ends with the test. Without a consul binary on
// PATH the test fails where CI is set, and is skipped elsewhere, saying so.
// Settings are more of the server's configuration, in HCL.
func Start(t testing.TB, settings ...string) *Server {
	t.Helper()
	s, err := Run(t.TempDir(), settings...)
	need(t, err)
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	s.showLog(t)
	return s
}

// need ends a test whose server did not start.
func need(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") == "" {
		t.Skip("no consul on PATH: `make bin/consul` builds one")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// showLog shows the end of the server's log if the test fails.
func (s *Server) showLog(t testing.TB) {
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		if log, err := os.ReadFile(filepath.Join(s.dir, "consul.log")); err == nil {
			t.Logf("consul's log ends:\n%s", log[max(0, len(log)-4000):])
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

// Run starts a server that keeps its data and its log in a directory. Who runs
// it stops it.
func Run(dir string, settings ...string) (*Server, error) {
	binary, err := exec.LookPath("consul")
	if err != nil {
		return nil, fmt.Errorf("find consul: %w", err)
	}
	// A port that was free may be taken by the time that the server wants it.
	var s *Server
	for range 3 {
		if s, err = newServer(binary, dir, settings); err != nil {
			return nil, err
		}
		if err = s.Restart(); err == nil {
			return s, nil
		}
		if s.cmd != nil {
			err = errors.Join(err, s.Kill())
		}
	}
	return nil, err
}

// newServer chooses the ports of a server.
func newServer(binary, dir string, settings []string) (*Server, error) {
	ports, err := freePorts(4)
	if err != nil {
		return nil, err
	}
	port := func(i int) string { return strconv.Itoa(ports[i]) }
	s := &Server{
		Address: net.JoinHostPort("127.0.0.1", port(0)),
		dir:     dir,
		args: []string{binary, "agent", "-server", "-bootstrap-expect=1", "-node=test", "-bind=127.0.0.1",
			"-client=127.0.0.1", "-data-dir=" + filepath.Join(dir, "data"), "-log-level=warn",
			"-http-port=" + port(0), "-server-port=" + port(1), "-serf-lan-port=" + port(2), "-serf-wan-port=-1",
			"-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=" + port(3),
			// All daemons of a test share one address, of which Consul takes 200
			// connections by default.
			"-hcl=limits { http_max_conns_per_client = 4000 }",
			"-hcl=performance { raft_multiplier = 1 } connect { enabled = false } disable_update_check = true leave_on_terminate = false"},
	}
	for _, hcl := range settings {
		s.args = append(s.args, "-hcl="+hcl)
	}
	return s, nil
}

// freePorts finds ports that nobody listens on at this moment.
func freePorts(n int) ([]int, error) {
	ports := make([]int, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer func() { _ = l.Close() }()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}

// Restart starts the server, after Kill for example, and waits until it leads.
func (s *Server) Restart() error {
	log, err := os.OpenFile(filepath.Join(s.dir, "consul.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open consul's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(s.args[0], s.args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	// A test binary that is killed must not leave it behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start consul: %w", err)
	}
	ended := make(chan struct{})
	s.cmd, s.ended = cmd, ended
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	return s.waitForLeader()
}

func (s *Server) waitForLeader() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if s.leads(ctx) {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.ended:
			return fmt.Errorf("consul ended; see %s", filepath.Join(s.dir, "consul.log"))
		case <-ctx.Done():
			return fmt.Errorf("consul has no leader after %v; see %s", startTimeout, filepath.Join(s.dir, "consul.log"))
		}
	}
}

// leads reports whether the server has a leader, and its own agent has joined
// the catalog, which sessions need.
func (s *Server) leads(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Address+"/v1/health/node/test", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer func() { _ = resp.Body.Close() }()
	var checks []struct{ CheckID, Status string }
	if json.NewDecoder(resp.Body).Decode(&checks) != nil {
		return false
	}
	for _, c := range checks {
		if c.CheckID == "serfHealth" && c.Status == "passing" {
			return true
		}
	}
	return false
}

// PID returns the server's process id, for measurements.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Kill kills the server. Its data stays, for Restart.
func (s *Server) Kill() error { return s.signal(syscall.SIGKILL, true) }

// Stop ends the server in order.
func (s *Server) Stop() error {
	if err := s.signal(syscall.SIGCONT, false); err != nil {
		return err
	}
	return s.signal(syscall.SIGTERM, true)
}

// Pause stops the server's process as it stands: it hangs.
func (s *Server) Pause() error { return s.signal(syscall.SIGSTOP, false) }

// Resume lets a paused server go on.
func (s *Server) Resume() error { return s.signal(syscall.SIGCONT, false) }

func (s *Server) signal(sig syscall.Signal, wait bool) error {
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal consul: %w", err)
	}
	if !wait {
		return nil
	}
	select {
	case <-s.ended:
		return nil
	case <-time.After(10 * time.Second):
		return errors.Join(errors.New("consul did not end on request"), s.cmd.Process.Kill())
	}
}
