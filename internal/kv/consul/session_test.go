package consul_test

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/consul"
	"github.com/musterhq/muster/test/kit/consultest"
)

func TestCloseLeavesNothingBehind(t *testing.T) {
	server := shared.Start(t)
	s := server.KV(t)
	svc, _ := service(t, "leaves-nothing")
	x := openSession(t, s, svc)
	if ok, err := x.Acquire(t.Context(), "leaves/lock", nil); !ok || err != nil {
		t.Fatalf("Acquire = %v, %v", ok, err)
	}
	if !inCatalog(t, server, svc.ID) || !sessionLives(t, server, x.ID()) {
		t.Fatal("the service is not in the catalog, or the session not in Consul")
	}
	closeSession(t, x)
	if inCatalog(t, server, svc.ID) {
		t.Error("the service is in the catalog still")
	}
	if sessionLives(t, server, x.ID()) {
		t.Error("the session is in Consul still")
	}
	if pairs, _, err := s.List(t.Context(), "leaves/lock", kv.ListOptions{}); err != nil || len(pairs) != 0 {
		t.Errorf("the lock is there still: %v, %v", pairs, err)
	}
	closeSession(t, x)
}

// TestLost ends sessions in the ways in which they end without their process's
// doing, and checks that it learns of it, and can have a new one.
func TestLost(t *testing.T) {
	server := shared.Start(t)
	s := server.KV(t)
	t.Run("Destroyed", func(t *testing.T) {
		svc, _ := service(t, "destroyed")
		x := openSession(t, s, svc)
		var ok bool
		ask(t, server, http.MethodPut, "/v1/session/destroy/"+x.ID(), &ok)
		expectLost(t, x)
		closeSession(t, x)
	})
	t.Run("CheckFails", func(t *testing.T) {
		svc, l := service(t, "check-fails")
		x := openSession(t, s, svc)
		began := time.Now()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		expectLost(t, x)
		t.Logf("lost %v after the process stopped to answer", time.Since(began).Round(time.Millisecond))
		closeSession(t, x)
	})
	t.Run("Replaced", func(t *testing.T) {
		svc, _ := service(t, "replaced")
		old := openSession(t, s, svc)
		var ok bool
		ask(t, server, http.MethodPut, "/v1/session/destroy/"+old.ID(), &ok)
		expectLost(t, old)
		x := openSession(t, s, svc)
		closeSession(t, old)
		if !inCatalog(t, server, svc.ID) || !sessionLives(t, server, x.ID()) {
			t.Error("closing a lost session took its successor's service or session away")
		}
		closeSession(t, x)
		if inCatalog(t, server, svc.ID) {
			t.Error("the service is in the catalog still")
		}
	})
}

// TestKilledProcessLosesItsLocks measures what the check-bound session is for:
// how soon the locks of a process that was killed are free.
func TestKilledProcessLosesItsLocks(t *testing.T) {
	server := shared.Start(t)
	var took []time.Duration
	for i := range 7 {
		took = append(took, takeOver(t, server, "take-over/"+strconv.Itoa(i), syscall.SIGKILL).Round(time.Millisecond))
	}
	slices.Sort(took)
	t.Logf("locks were taken over after the kill: median %v of %v", took[len(took)/2], took)
	// An agent that has met a new server waits for up to 3 s with what it has to
	// tell it, and this server is young; so not all of them count. Without the
	// checks that dial, none would take less than the session's TTL.
	if least := took[0]; least > 8*time.Second {
		t.Errorf("locks were taken over %v after the kill, want well below the session's TTL", least)
	}
}

// TestStoppedProcessLosesItsLocks stops a process: its kernel answers those
// that dial it, but it does not report. Resumed, it learns that it lost its session.
func TestStoppedProcessLosesItsLocks(t *testing.T) {
	server := shared.Start(t)
	t.Logf("locks were taken over %v after the stop", takeOver(t, server, "stopped/lock", syscall.SIGSTOP).Round(time.Millisecond))
}

// TestStartedAgainAtOnce lets a process start at an address where one was killed:
// what dials it must not take it for the former.
func TestStartedAgainAtOnce(t *testing.T) {
	server := shared.Start(t)
	former, _ := service(t, "former")
	x := openSession(t, server.KV(t), former)
	if ok, err := x.Acquire(t.Context(), "again/lock", nil); !ok || err != nil {
		t.Fatalf("Acquire = %v, %v", ok, err)
	}
	elsewhere, _ := service(t, "elsewhere")
	bystander := openSession(t, server.KV(t), elsewhere)
	defer closeSession(t, bystander)
	next := *former
	next.ID = "next"
	began := time.Now()
	s := server.KV(t)
	y := openSession(t, s, &next)
	defer closeSession(t, y)
	expectLost(t, x)
	acquireSoon(t, y, "again/lock")
	t.Logf("the lock was taken over %v after the start", time.Since(began).Round(time.Millisecond))
	if inCatalog(t, server, former.ID) || !inCatalog(t, server, next.ID) || !inCatalog(t, server, elsewhere.ID) {
		t.Error("the catalog does not hold those that live, and them alone")
	}
	closeSession(t, x)
}

// TestCloseIsQuick measures how soon the locks of a process that ends in order
// are free.
func TestCloseIsQuick(t *testing.T) {
	server := shared.Start(t)
	s := server.KV(t)
	mine := openSession(t, s, nil)
	defer closeSession(t, mine)
	var took []time.Duration
	for i := range 10 {
		lock := "quick/" + strconv.Itoa(i)
		svc, _ := service(t, lock)
		x := openSession(t, s, svc)
		acquireSoon(t, x, lock)
		began := time.Now()
		closeSession(t, x)
		acquireSoon(t, mine, lock)
		took = append(took, time.Since(began).Round(time.Millisecond))
	}
	slices.Sort(took)
	t.Logf("locks were taken over after the end: median %v of %v", took[len(took)/2], took)
}

func acquireSoon(t *testing.T, x kv.Session, lock string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		ok, err := x.Acquire(ctx, lock, nil)
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			return
		}
	}
}

// takeOver lets a process take a lock, kills or stops it, and returns the time
// from then until another has it.
func takeOver(t *testing.T, server *consultest.Server, lock string, by syscall.Signal) time.Duration {
	s := server.KV(t)
	mine := openSession(t, s, nil)
	defer closeSession(t, mine)
	child := exec.Command(os.Args[0], "-test.run=^TestHoldLock$")
	child.Env = append(os.Environ(), "HOLD_LOCK_AT="+server.Address, "HOLD_LOCK="+lock)
	if by == syscall.SIGKILL {
		// That it does not report is not what tells of its end.
		child.Env = append(child.Env, "HOLD_LOCK_SILENTLY=1")
	}
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Process.Kill() }()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	held := func(want bool) {
		t.Helper()
		var index uint64
		for {
			pairs, next, err := s.List(ctx, lock, kv.ListOptions{After: index})
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
	began := time.Now()
	if err := child.Process.Signal(by); err != nil {
		t.Fatal(err)
	}
	held(false)
	acquireSoon(t, mine, lock)
	took := time.Since(began)
	if by == syscall.SIGSTOP {
		if err := child.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if err := child.Wait(); err != nil {
			t.Errorf("the process that was stopped did not end by itself: %v", err)
		}
		return took
	}
	_ = child.Wait()
	return took
}

// TestHoldLock is the process that takeOver kills or stops.
func TestHoldLock(t *testing.T) {
	address := os.Getenv("HOLD_LOCK_AT")
	if address == "" {
		return // run as part of the suite: there is nothing to hold
	}
	s, err := consul.New(consul.Config{Address: address})
	if err != nil {
		t.Fatal(err)
	}
	svc, _ := service(t, "holder-"+strconv.Itoa(os.Getpid()))
	if os.Getenv("HOLD_LOCK_SILENTLY") != "" {
		svc.Silence = time.Minute
	}
	x := openSession(t, s, svc)
	if ok, err := x.Acquire(t.Context(), os.Getenv("HOLD_LOCK"), nil); !ok || err != nil {
		t.Fatalf("Acquire = %v, %v", ok, err)
	}
	<-x.Lost()
}
