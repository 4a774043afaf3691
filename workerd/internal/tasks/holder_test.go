package tasks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/workerd/executor"
)

// twin is one of two executors of the same kind. It holds the tasks that it has
// prepared, and no other.
type twin struct {
	*worker
	name    string
	healthy bool
	// holders are the names of the executors that hold tasks. Both twins share it.
	holders map[string]string
	// unlisted, if set, is the error of List, and unreached that of Prepare.
	unlisted, unreached error
}

func (e *twin) Describe(ctx context.Context) (*executor.About, error) {
	about, err := e.worker.Describe(ctx)
	about.Name, about.Healthy = e.name, e.healthy
	return about, err
}

// check fails the test unless the executor holds a task that it is called for.
func (e *twin) check(call, id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if holder := e.holders[id]; holder != e.name {
		e.t.Errorf("%s of %s was called of executor %s, but %q holds it", call, id, e.name, holder)
	}
}

func (e *twin) Prepare(ctx context.Context, task *executor.Task, handle []byte) (*executor.Prepared, error) {
	if e.unreached != nil {
		return nil, e.unreached
	}
	e.mu.Lock()
	if e.holders[task.ID] == "" {
		e.holders[task.ID] = e.name
	}
	e.mu.Unlock()
	e.check("prepare", task.ID)
	return e.worker.Prepare(ctx, task, handle)
}

func (e *twin) Start(ctx context.Context, task *executor.Task, handle []byte, network *executor.TaskNetwork) (*executor.Started, error) {
	e.check("start", task.ID)
	return e.worker.Start(ctx, task, handle, network)
}

func (e *twin) Wait(ctx context.Context, ref executor.Ref) (*executor.Ended, error) {
	e.check("wait", ref.TaskID)
	return e.worker.Wait(ctx, ref)
}

func (e *twin) Update(ctx context.Context, task *executor.Task, handle []byte) ([]byte, error) {
	e.check("update", task.ID)
	return e.worker.Update(ctx, task, handle)
}

func (e *twin) Shutdown(ctx context.Context, ref executor.Ref, grace *time.Duration) (*musterv1.RuntimeStatus, error) {
	e.check("shutdown", ref.TaskID)
	return e.worker.Shutdown(ctx, ref, grace)
}

func (e *twin) Remove(ctx context.Context, ref executor.Ref) error {
	e.check("remove", ref.TaskID)
	return e.worker.Remove(ctx, ref)
}

func (e *twin) List(ctx context.Context, node string) (mine []executor.Listed, err error) {
	all, err := e.worker.List(ctx, node)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.unlisted != nil {
		return nil, e.unlisted
	}
	for _, listed := range all {
		if e.holders[listed.TaskID] == e.name {
			mine = append(mine, listed)
		}
	}
	return mine, err
}

// lateSet has one executor that is not up yet. Calls to it wait until it is.
type lateSet struct {
	*executor.Fixed
	late string
	up   time.Time
}

// secondIsLate has the second executor come up 5 s after the start of the worker.
func secondIsLate(fixed *executor.Fixed) executor.Set {
	return &lateSet{Fixed: fixed, late: "second", up: time.Now().Add(5 * time.Second)}
}

func (s *lateSet) Describe(ctx context.Context) []*executor.Described {
	all := slices.Clone(s.Fixed.Describe(ctx))
	for i, e := range all {
		if e.Name == s.late && time.Now().Before(s.up) {
			all[i] = executor.NewDescribed(&lateExecutor{e.Executor, s.up}, nil)
			all[i].Name = e.Name
		}
	}
	return all
}

func (s *lateSet) For(ctx context.Context, kind, holder string) (*executor.Described, error) {
	for _, e := range s.Describe(ctx) {
		switch {
		case holder == "" && e.Runs(kind) && e.Healthy():
			return e, nil
		case holder == s.late && e.Name == s.late:
			if err := backoff.Sleep(ctx, time.Until(s.up)); err != nil {
				return nil, err
			}
		}
	}
	return s.Fixed.For(ctx, kind, holder)
}

// lateExecutor is an executor that is not up yet.
type lateExecutor struct {
	executor.Executor
	up time.Time
}

func (e *lateExecutor) List(ctx context.Context, node string) ([]executor.Listed, error) {
	if err := backoff.Sleep(ctx, time.Until(e.up)); err != nil {
		return nil, err
	}
	return e.Executor.List(ctx, node)
}

// TestTaskStaysWithItsExecutor has two executors of a kind, of which the first one is
// unhealthy at first: the second one gets the task and keeps it when the first one
// works again, also if the worker has lost what it stored of that, and if the second
// one is late to describe itself.
func TestTaskStaysWithItsExecutor(t *testing.T) {
	for name, lose := range map[string]func(m *machine){
		"store is kept":      func(*machine) {},
		"executor is lost":   func(m *machine) { m.disk.contents.Tasks["a"].Executor = "" },
		"whole disk is lost": func(m *machine) { m.disk.clear() },
		"executor is lost and late": func(m *machine) {
			m.disk.contents.Tasks["a"].Executor = ""
			m.set = secondIsLate
		},
		"whole disk is lost and executor is late": func(m *machine) {
			m.disk.clear()
			m.set = secondIsLate
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(m *machine) {
				holders := map[string]string{}
				firstHealthy := false
				m.twins = func(w *worker) []executor.Executor {
					return []executor.Executor{
						&twin{worker: w, name: "first", healthy: firstHealthy, holders: holders},
						&twin{worker: w, name: "second", healthy: true, holders: holders},
					}
				}
				m.start().sync()
				m.want("a", running)
				m.settle(time.Minute)
				m.wantState("a", running)
				if holders["a"] != "second" {
					m.t.Fatalf("executor %q got the task, want the healthy one", holders["a"])
				}
				firstHealthy = true
				m.worker.stop()
				lose(m)
				m.calls = nil
				m.start().sync()
				m.settle(time.Minute)
				m.wantState("a", running)
				if !slices.Contains(m.calls, "update a") {
					m.t.Errorf("calls = %q, want an update of a, whose labels may have changed", m.calls)
				}
				m.want("b", running)
				m.settle(time.Minute)
				if holders["b"] != "first" {
					m.t.Errorf("executor %q got a new task, want the first healthy one", holders["b"])
				}
				m.withdraw("a")
				m.settle(time.Minute)
				m.wantNothing("a")
				m.wantStarts("a", 1)
			})
		})
	}
}

// TestTaskIsKeptWhileItsHolderCannotList has the second of two executors, which holds
// the task, refuse List for good after the worker has lost which one it was.
func TestTaskIsKeptWhileItsHolderCannotList(t *testing.T) {
	refusals := map[string]error{
		"precondition":  &executor.Error{Code: codes.FailedPrecondition, Err: errors.New("no database")},
		"unimplemented": &executor.Error{Code: codes.Unimplemented, Err: errors.New("no such method")},
	}
	for name, refusal := range refusals {
		for _, goal := range []musterv1.TaskState{running, shutdown} {
			t.Run(fmt.Sprint(name, " ", goal), func(t *testing.T) {
				inBubble(t, func(m *machine) {
					holders := map[string]string{"a": "second"}
					var unlisted error
					m.twins = func(w *worker) []executor.Executor {
						return []executor.Executor{
							&twin{worker: w, name: "first", healthy: true, holders: holders},
							&twin{worker: w, name: "second", healthy: true, holders: holders, unlisted: unlisted},
						}
					}
					if goal == running {
						m.want("a", running)
						m.settle(time.Minute)
					} else {
						m.hold("a", executor.StateRunning)
						m.assignedBefore("a", shutdown, 0)
					}
					m.worker.stop()
					if goal == running {
						m.disk.contents.Tasks["a"].Executor = ""
					}
					unlisted = refusal
					m.start().sync()
					m.settle(time.Minute)
					if state := m.reported["a"].GetStatus().GetState(); state > running {
						m.t.Errorf("the task was reported as %s", state)
					}
					m.worker.stop()
					unlisted = nil
					m.start().sync()
					m.settle(time.Minute)
					m.wantState("a", goal)
					m.withdraw("a")
					m.settle(time.Minute)
					m.wantNothing("a")
				})
			})
		}
	}
}

// TestTaskOfMissingExecutorFails takes away the executor that holds a task, while
// another one offers its kind.
func TestTaskOfMissingExecutorFails(t *testing.T) {
	inBubble(t, func(m *machine) {
		holders := map[string]string{}
		m.twins = func(w *worker) []executor.Executor {
			return []executor.Executor{&twin{worker: w, name: "first", healthy: true, holders: holders}}
		}
		m.start().sync()
		m.want("a", running)
		m.settle(time.Minute)
		m.wantState("a", running)
		m.twins = func(w *worker) []executor.Executor {
			return []executor.Executor{&twin{worker: w, name: "second", healthy: true, holders: holders}}
		}
		m.start().sync()
		m.settle(time.Minute)
		m.wantState("a", failed)
		m.wantError("a", "executor first, which holds the task, is no longer on this node")
		if !m.reported["a"].GetNodeToBlame() {
			m.t.Error("the node is not blamed")
		}
	})
}

// choosingSet gives tasks that no executor holds to the executor of its choice.
type choosingSet struct {
	*executor.Fixed
	choice atomic.Pointer[string]
}

func (s *choosingSet) For(ctx context.Context, kind, holder string) (*executor.Described, error) {
	return s.Fixed.For(ctx, kind, cmp.Or(holder, *s.choice.Load()))
}

// TestTaskIsNotBoundToExecutorThatWasNeverReached gives a new task to an executor that is
// down, until another one of its kind works.
func TestTaskIsNotBoundToExecutorThatWasNeverReached(t *testing.T) {
	inBubble(t, func(m *machine) {
		holders := map[string]string{}
		m.twins = func(w *worker) []executor.Executor {
			down := &executor.Error{Code: codes.Unavailable, Temporary: true, NotCalled: true, Err: errors.New("first is down")}
			return []executor.Executor{
				&twin{worker: w, name: "first", holders: holders, unreached: down},
				&twin{worker: w, name: "second", healthy: true, holders: holders},
			}
		}
		var set *choosingSet
		m.set = func(fixed *executor.Fixed) executor.Set {
			set = &choosingSet{Fixed: fixed}
			set.choice.Store(new("first"))
			return set
		}
		m.start().sync()
		m.want("a", running)
		m.settle(time.Minute)
		m.wantState("a", preparing)
		m.wantError("a", "first is down")
		set.choice.Store(new("second"))
		m.settle(time.Minute)
		m.wantState("a", running)
		if stored := m.disk.contents.Tasks["a"].Executor; stored != "second" {
			m.t.Errorf("stored executor = %q, want second", stored)
		}
	})
}
