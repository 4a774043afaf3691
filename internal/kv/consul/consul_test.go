package consul_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/consul"
	"github.com/musterhq/muster/internal/kv/consultest"
	"github.com/musterhq/muster/internal/kv/kvtest"
)

func TestConformance(t *testing.T) {
	server := consultest.Start(t)
	kvtest.Run(t, func(t *testing.T) kv.KV { return server.KV(t) })
}

func TestUnreachable(t *testing.T) {
	s, err := consul.New(consul.Config{Address: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "a"); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("Get error = %v, want ErrUnavailable", err)
	}
}

// TestKilledProcessLosesItsLocks measures what the check-bound session is for:
// how soon the locks of a process that was killed are free.
func TestKilledProcessLosesItsLocks(t *testing.T) {
	server := consultest.Start(t)
	s := server.KV(t)
	child := exec.Command(os.Args[0], "-test.run=^TestHoldLock$")
	child.Env = append(os.Environ(), "HOLD_LOCK_AT="+server.Address)
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Process.Kill() }()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	held := func(want bool) {
		t.Helper()
		var index uint64
		for {
			pairs, next, err := s.List(ctx, "the/lock", kv.ListOptions{After: index})
			if err != nil {
				t.Fatal(err)
			}
			if (len(pairs) == 1) == want {
				return
			}
			index = next
		}
	}
	held(true)
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_ = child.Wait()
	held(false)
	mine, err := s.NewSession(ctx, kv.SessionConfig{Name: "contender"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mine.Close(ctx) }()
	for {
		ok, err := mine.Acquire(ctx, "the/lock", nil)
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			break
		}
	}
	t.Logf("the lock was taken over %v after the kill", time.Since(began).Round(time.Millisecond))
}

// TestHoldLock is the process that TestKilledProcessLosesItsLocks kills.
func TestHoldLock(t *testing.T) {
	address := os.Getenv("HOLD_LOCK_AT")
	if address == "" {
		return // run as part of the suite: there is nothing to hold
	}
	s, err := consul.New(consul.Config{Address: address})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	session, err := s.NewSession(t.Context(), kv.SessionConfig{Name: "holder", Service: &kv.Service{
		ID: fmt.Sprintf("holder-%d", os.Getpid()), Name: "holder", Address: "127.0.0.1",
		Port: l.Addr().(*net.TCPAddr).Port, CheckAddress: l.Addr().String(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := session.Acquire(t.Context(), "the/lock", []byte("x")); !ok || err != nil {
		t.Fatalf("Acquire = %v, %v", ok, err)
	}
	<-session.Lost()
}
