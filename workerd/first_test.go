package workerd_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd"
	"github.com/musterhq/muster/workerd/executor"
)

// slowSet is a set whose executor takes its time to come up.
type slowSet struct {
	executor.Set
	up      time.Time
	changes chan struct{}
}

func (s *slowSet) Describe(ctx context.Context) []*executor.Described {
	timer := time.NewTimer(time.Until(s.up))
	defer timer.Stop()
	select {
	case <-timer.C:
		return s.Set.Describe(ctx)
	case <-ctx.Done():
		return []*executor.Described{{Name: "null", Description: &ExecutorDescription{
			Name: "null", Health: ExecutorDescription_UNHEALTHY, Message: "it is being started",
		}}}
	}
}

func (s *slowSet) Changes() <-chan struct{} { return s.changes }

// comesUp starts a worker with an executor that comes up after a time, and
// returns its first session with when that began.
func comesUp(t *testing.T, after time.Duration, change func(*workerd.Config)) (*session, time.Duration) {
	t.Helper()
	n := newNetwork()
	d, _ := n.serve(t, "d1:1")
	set, _ := nullSet(t)
	began := time.Now()
	slow := &slowSet{Set: set, up: began.Add(after), changes: make(chan struct{}, 1)}
	time.AfterFunc(after, func() { slow.changes <- struct{}{} })
	start(t, n, slow, change)
	return d.await(t), time.Since(began)
}

func kinds(node *NodeDescription) []string {
	var all []string
	for _, e := range node.GetExecutors() {
		all = append(all, e.GetKinds()...)
	}
	return all
}

// A node that is READY can be counted on for all that it runs, so a worker's
// hello waits for its executors.
func TestTheFirstHelloKnowsTheExecutors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, at := comesUp(t, 5*time.Second, nil)
		if got := kinds(s.hello.GetDescription()); !slices.Equal(got, []string{"null"}) {
			t.Errorf("after %v the hello knows the kinds %q", at, got)
		}
		s.welcome()
	})
}

// An executor that hangs keeps no node away: it is reported when it is up.
func TestAnExecutorThatHangsKeepsNoNodeAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, at := comesUp(t, 20*time.Second, nil)
		hello := s.hello.GetDescription()
		if len(kinds(hello)) != 0 || len(hello.GetExecutors()) != 1 || at > 10*time.Second {
			t.Errorf("after %v the hello tells of %v", at, hello.GetExecutors())
		}
		s.welcome()
		settle(20 * time.Second)
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.described) == 0 || !slices.Equal(kinds(s.described[len(s.described)-1]), []string{"null"}) {
			t.Errorf("the executor that came up was never reported: %v", s.described)
		}
	})
}

// A worker says that it has no session until a dispatcher has welcomed it, and
// again when the session has ended.
func TestAWorkerSaysWhetherItHasASession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		set, _ := nullSet(t)
		w := start(t, n, set, nil).worker
		settle(10 * time.Second)
		if err := w.Session(); !errors.Is(err, workerd.ErrNotJoined) || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("without a dispatcher: %v", err)
		}
		d, stop := n.serve(t, "d1:1")
		s := d.await(t)
		settle(time.Second)
		if err := w.Session(); !errors.Is(err, workerd.ErrNotJoined) {
			t.Errorf("before the welcome: %v", err)
		}
		s.welcome()
		settle(time.Second)
		if err := w.Session(); err != nil {
			t.Errorf("in a session: %v", err)
		}
		stop()
		settle(time.Minute)
		if err := w.Session(); err == nil || errors.Is(err, workerd.ErrNotJoined) || !strings.Contains(err.Error(), "for 1m0s") {
			t.Errorf("a minute after the session: %v", err)
		}
	})
}
