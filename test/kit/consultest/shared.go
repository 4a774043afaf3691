package consultest

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
)

// Shared is one server for all tests of a package, because a start takes some seconds. The
// first test that needs it starts it:
//
//	var shared consultest.Shared
//
//	func TestMain(m *testing.M) { os.Exit(shared.Run(m)) }
//
// A test that kills or pauses its server starts one of its own.
type Shared struct {
	mu     sync.Mutex
	dir    string
	server *Server
	err    error
}

// Start returns the server, which runs until Run ends.
func (s *Shared) Start(t testing.TB) *Server {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil && s.err == nil {
		if s.dir, s.err = os.MkdirTemp("", "consul-"); s.err == nil {
			s.server, s.err = Run(s.dir)
		}
	}
	needConsul(t, s.err)
	s.server.showLog(t)
	return s.server
}

// Run runs the tests, ends the server and returns the exit code.
func (s *Shared) Run(m *testing.M) int {
	code := m.Run()
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.server != nil {
		err = s.server.Stop()
	}
	if s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}
