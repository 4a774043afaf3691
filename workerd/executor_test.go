package workerd_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	. "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/executor/contractv1"
)

// able is the null executor with the abilities that it lacks, and with faults
// that come from outside of any task.
type able struct {
	*null.Executor

	mu sync.Mutex
	// away makes all calls fail for a while.
	away bool
	// deaf makes Shutdown hang.
	deaf bool
	// called counts the calls that do something about a task.
	called     int
	updates    []string
	terminated []string
	// lines are the output of each task.
	lines []string
	// endless makes Logs write until it is cancelled.
	endless bool
	written int
	// log, if set, is Logs.
	log func(ref sdk.Ref, options sdk.LogOptions, emit func(sdk.LogLine) error) error
}

var (
	_ sdk.LogStreamer = (*able)(nil)
	_ sdk.Updater     = (*able)(nil)
)

// ableSet returns a set with one such executor.
func ableSet(t testing.TB) (executor.Set, *able) {
	t.Helper()
	_, e := nullSet(t)
	a := &able{Executor: e}
	set, err := executor.NewFixed(t.Context(), contractv1.FromServer(sdk.NewServer(a)))
	if err != nil {
		t.Fatal(err)
	}
	return set, a
}

func (a *able) fault() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.away {
		return sdk.Temporary(errors.New("engine is away"), 0)
	}
	return nil
}

func (a *able) set(change func(a *able)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(a)
}

// calls returns how often something was done about a task.
func (a *able) calls() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.called
}

func (a *able) count() { a.set(func(a *able) { a.called++ }) }

func (a *able) Prepare(ctx context.Context, task *sdk.Task, handle sdk.Handle) (sdk.Handle, error) {
	a.count()
	return a.Executor.Prepare(ctx, task, handle)
}

func (a *able) Start(ctx context.Context, task *sdk.Task, handle sdk.Handle) (*sdk.Started, error) {
	a.count()
	return a.Executor.Start(ctx, task, handle)
}

func (a *able) Remove(ctx context.Context, ref sdk.Ref) error {
	a.count()
	return a.Executor.Remove(ctx, ref)
}

func (a *able) Wait(ctx context.Context, ref sdk.Ref) (*sdk.Ended, error) {
	a.count()
	if err := a.fault(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		for ctx.Err() == nil {
			if err := a.fault(); err != nil {
				cancel(err)
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	ended, err := a.Executor.Wait(ctx, ref)
	if err != nil && context.Cause(ctx) != nil {
		return nil, context.Cause(ctx)
	}
	return ended, err
}

func (a *able) Shutdown(ctx context.Context, ref sdk.Ref, grace *time.Duration) (*sdk.Status, error) {
	a.count()
	a.mu.Lock()
	deaf := a.deaf
	a.mu.Unlock()
	if deaf {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return a.Executor.Shutdown(ctx, ref, grace)
}

func (a *able) Terminate(ctx context.Context, ref sdk.Ref) (*sdk.Status, error) {
	a.count()
	a.set(func(a *able) { a.terminated = append(a.terminated, ref.TaskID) })
	return a.Executor.Terminate(ctx, ref)
}

func (a *able) Update(_ context.Context, task *sdk.Task, handle sdk.Handle) (sdk.Handle, error) {
	a.set(func(a *able) {
		a.updates = append(a.updates, fmt.Sprint(task.GetId(), " ", task.GetServiceLabels(), " ", len(task.GetPorts())))
	})
	return handle, nil
}

func (a *able) Logs(ctx context.Context, ref sdk.Ref, options sdk.LogOptions, emit func(sdk.LogLine) error) error {
	a.mu.Lock()
	lines, endless, log := a.lines, a.endless, a.log
	a.mu.Unlock()
	if log != nil {
		return log(ref, options, emit)
	}
	for _, line := range lines {
		if err := emit(sdk.LogLine{Time: time.Now(), Stream: sdk.Stdout, Data: []byte(ref.TaskID + " " + line)}); err != nil {
			return err
		}
	}
	for endless {
		if err := emit(sdk.LogLine{Stream: sdk.Stderr, Data: []byte(strings.Repeat("x", 1000))}); err != nil {
			return err
		}
		a.set(func(a *able) { a.written++ })
	}
	return nil
}

func TestAnExecutorThatIsAwayForAWhileEndsNoTask(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d, _ := n.serve(t, "d1:1")
		set, a := ableSet(t)
		start(t, n, set, nil)
		s := d.await(t)
		s.welcome()
		s.assign(true, []assignment{nullTask("a", running, nil)})
		settle(time.Second)
		s.wantStates(map[string]TaskState{"a": running})
		// A moment is not worth a word.
		a.set(func(a *able) { a.away = true })
		settle(500 * time.Millisecond)
		a.set(func(a *able) { a.away = false })
		settle(5 * time.Second)
		if all := s.all("a"); len(all) != 1 {
			t.Errorf("reported: %v", all)
		}
		// Longer than that is reported, and taken back afterwards.
		a.set(func(a *able) { a.away = true })
		settle(10 * time.Second)
		if got := s.state("a"); got.GetState() != running || got.GetError() != "engine is away" {
			t.Errorf("while the executor is away: %v", got)
		}
		a.set(func(a *able) { a.away = false })
		settle(10 * time.Second)
		if got := s.state("a"); got.GetState() != running || got.GetError() != "" {
			t.Errorf("when the executor is back: %v", got)
		}
	})
}

func TestATaskThatCannotBeStoppedIsKilled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d, _ := n.serve(t, "d1:1")
		set, a := ableSet(t)
		start(t, n, set, nil)
		s := d.await(t)
		s.welcome()
		task := nullTask("a", running, nil)
		s.assign(true, []assignment{task})
		settle(time.Second)
		a.set(func(a *able) { a.deaf = true })
		s.assign(false, []assignment{task.desire(shutdown)})
		settle(time.Minute)
		if got := s.state("a"); got.GetState() != running || got.GetError() == "" {
			t.Errorf("after a minute: %v", got)
		}
		settle(2 * time.Minute)
		if got := s.state("a"); got.GetState() != shutdown || got.GetRuntime().GetExitCode() != 137 {
			t.Errorf("after three minutes: %v, killed %v", got, a.terminated)
		}
	})
}

func TestChangedSurroundingsReachTheExecutor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d, _ := n.serve(t, "d1:1")
		set, a := ableSet(t)
		start(t, n, set, nil)
		s := d.await(t)
		s.welcome()
		task := nullTask("a", running, nil)
		s.assign(true, []assignment{task})
		settle(time.Second)
		changed := task.desire(running)
		changed.ServiceLabels = map[string]string{"k": "v"}
		changed.Ports = []*PortConfig{{TargetPort: 80}}
		s.assign(false, []assignment{changed})
		settle(time.Second)
		// The same once more is no change.
		s.assign(false, []assignment{changed})
		settle(time.Second)
		if got := strings.Join(a.updates, ";"); got != "a map[k:v] 1" {
			t.Errorf("updates: %s", got)
		}
		s.wantStates(map[string]TaskState{"a": running})
	})
}

// logRequest asks for the output of tasks.
func (s *session) logRequest(id string, tasks ...string) {
	s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_LogRequest{LogRequest: &dispatcherv1.LogRequest{
		SubscriptionId: id, TaskIds: tasks, Options: &LogOptions{Follow: true},
	}}})
}

// logged returns the lines of a subscription, and whether it has ended.
func (s *session) logged(id string) (lines []string, ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, data := range s.logs {
		if data.GetSubscriptionId() != id {
			continue
		}
		for _, m := range data.GetMessages() {
			lines = append(lines, string(m.GetData())+m.GetWarning())
		}
		ended = ended || data.GetEnd()
	}
	return lines, ended
}

func TestLogsOfTasks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d, _ := n.serve(t, "d1:1")
		set, a := ableSet(t)
		for i := range 1000 {
			a.lines = append(a.lines, fmt.Sprint("line ", i))
		}
		start(t, n, set, nil)
		s := d.await(t)
		s.welcome()
		s.assign(true, []assignment{nullTask("a", running, nil), nullTask("b", running, nil)})
		settle(time.Second)
		s.logRequest("sub1", "a", "b", "stranger")
		settle(time.Second)
		lines, ended := s.logged("sub1")
		if !ended || len(lines) != 2001 {
			t.Fatalf("%d lines, ended %t; want 2001 and the end", len(lines), ended)
		}
		next := map[string]int{}
		for _, line := range lines {
			task, _, _ := strings.Cut(line, " ")
			if task == "task" {
				if line != "task stranger is not on node node1" {
					t.Errorf("warning: %s", line)
				}
				continue
			}
			if want := fmt.Sprint(task, " line ", next[task]); line != want {
				t.Fatalf("got %q, want %q", line, want)
			}
			next[task]++
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, line := range s.logs[0].GetMessages() {
			if line.GetWarning() == "" && (line.GetServiceId() != "svc" || line.GetSource() != "web.1" || line.GetNodeId() != "node1") {
				t.Errorf("line: %v", line)
			}
		}
	})
}

func TestAFloodOfLogsHoldsUpNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d, _ := n.serve(t, "d1:1")
		set, a := ableSet(t)
		start(t, n, set, nil)
		s := d.await(t)
		s.welcome()
		tasks := []assignment{nullTask("a", running, nil)}
		s.assign(true, tasks)
		settle(time.Second)
		a.set(func(a *able) { a.endless = true })
		s.slow = 20 * time.Millisecond
		s.logRequest("flood", "a")
		settle(2 * time.Second)
		a.mu.Lock()
		written := a.written
		a.mu.Unlock()
		lines, _ := s.logged("flood")
		if behind := written - len(lines); len(lines) == 0 || behind > 2000 {
			t.Errorf("%d lines written, %d arrived: the reader is not held up", written, len(lines))
		}
		began := time.Now()
		s.assign(false, []assignment{nullTask("b", running, nil)})
		for s.state("b").GetState() != running {
			time.Sleep(10 * time.Millisecond)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("a status took %s", took)
		}
		s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_LogCancel{LogCancel: &dispatcherv1.LogCancel{SubscriptionId: "flood"}}})
		settle(2 * time.Second)
		before, _ := s.logged("flood")
		settle(10 * time.Second)
		if after, _ := s.logged("flood"); len(after) != len(before) {
			t.Errorf("%d further lines after the cancellation", len(after)-len(before))
		}
	})
}

// A reader without credit holds up the reading of its own output, and nothing
// else: not another reader of the same task, and not what the worker reports.
func TestAReaderWithoutCreditWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d, _ := n.serve(t, "d1:1")
		set, a := ableSet(t)
		for i := range 5000 {
			a.lines = append(a.lines, fmt.Sprint("line ", i))
		}
		start(t, n, set, nil)
		s := d.await(t)
		s.welcome()
		s.assign(true, []assignment{nullTask("a", running, nil)})
		settle(time.Second)
		ask := func(id string, credit uint64) {
			s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_LogRequest{LogRequest: &dispatcherv1.LogRequest{
				SubscriptionId: id, TaskIds: []string{"a"}, Credit: credit,
			}}})
		}
		want := func(id string, least, most int, end bool) {
			t.Helper()
			settle(time.Minute)
			if lines, ended := s.logged(id); len(lines) < least || len(lines) > most || ended != end {
				t.Errorf("reader %s got %d lines, ended %t; want %d to %d, %t", id, len(lines), ended, least, most, end)
			}
		}
		give := func(id string, credit uint64) {
			s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_LogCredit{
				LogCredit: &dispatcherv1.LogCredit{SubscriptionId: id, Credit: credit},
			}})
		}
		// A message holds up to 256 lines, and may go beyond the credit.
		ask("slow", 1)
		want("slow", 1, 256, false)
		ask("quick", 1<<40)
		want("quick", 5000, 5000, true)
		s.assign(false, []assignment{nullTask("b", running, nil)})
		settle(time.Second)
		s.wantStates(map[string]TaskState{"a": running, "b": running})
		// What the message went beyond has to come first.
		give("slow", 1)
		want("slow", 1, 256, false)
		give("slow", 200<<10)
		want("slow", 500, 1000, false)
		give("slow", math.MaxUint64)
		give("slow", math.MaxUint64)
		want("slow", 5000, 5000, true)
	})
}
