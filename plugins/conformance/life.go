package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	"google.golang.org/grpc/codes"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

func (s *suite) describe() {
	description := s.description()
	if description.GetName() == "" || description.GetVersion() == "" || len(description.GetKinds()) == 0 {
		s.Errorf("the executor does not say its name, version and kinds: %v", description)
	}
	if !description.GetHealthy() {
		s.Fatalf("the executor is not healthy: %s", description.GetMessage())
	}
	if text := description.GetPayloadSchema(); text != "" {
		var schema jsonschema.Schema
		if err := json.Unmarshal([]byte(text), &schema); err != nil {
			s.Fatalf("the payload's schema: %v", err)
		}
		resolved, err := schema.Resolve(nil)
		if err != nil {
			s.Fatalf("the payload's schema: %v", err)
		}
		for _, behavior := range []Behavior{{}, {Forever: true}, {RunFor: time.Second, ExitCode: 3, Grace: time.Second}} {
			if payload := s.Spec(behavior).GetGeneric().GetPayload(); payload != nil {
				if err := resolved.Validate(payload.AsMap()); err != nil {
					s.Errorf("the payload's schema refuses what the executor runs: %v", err)
				}
			}
		}
	}
}

func (s *suite) lifecycle() {
	for _, code := range []int32{0, 3} {
		before := time.Now()
		c := s.on(s.task(Behavior{ExitCode: code}))
		c.prepare()
		if listed := c.listed(); listed.GetState() != executorv1.ListedTask_PREPARED {
			s.Errorf("after Prepare the task is listed as %s", listed.GetState())
		}
		started := c.start()
		if started.GetRuntime().GetId() == "" {
			s.Error("Start does not say the task's runtime id")
		}
		ended := c.wait()
		if got := ended.GetRuntime().GetExitCode(); got != code {
			s.Errorf("exit code = %d, want %d", got, code)
		}
		if ended.GetError() != "" {
			s.Errorf("Wait's error = %q, want none", ended.GetError())
		}
		if at := ended.GetEndedAt().AsTime(); at.Before(before.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
			s.Errorf("the task ended at %s, and it is %s now", at, time.Now())
		}
		if listed := c.listed(); listed.GetState() != executorv1.ListedTask_ENDED || listed.GetRuntime().GetExitCode() != code {
			s.Errorf("after its end the task is listed as %v", listed)
		}
		c.removed()
	}
}

func (s *suite) refusals() {
	for field, spec := range s.Wrong {
		c := s.on(s.taskOf(spec))
		var fault *wire.Error
		if err := c.tryPrepare(); !errors.As(err, &fault) {
			s.Errorf("Prepare of a wrong %s = %v, want an error", field, err)
			continue
		}
		if fault.Temporary || fault.Blame != wire.BlameSpec || fault.Field != field {
			s.Errorf("Prepare of a wrong %s says %+v (%v), want the spec's fault in that field", field, fault, fault)
		}
		c.removed()
	}
}

func (s *suite) unknownTask() {
	c := s.on(s.task(Behavior{}))
	if _, err := c.tryStart(); code(err) != codes.NotFound {
		s.Errorf("Start of an unknown task = %v, want NOT_FOUND", err)
	}
	if _, err := c.tryWait(); code(err) != codes.NotFound {
		s.Errorf("Wait of an unknown task = %v, want NOT_FOUND", err)
	}
	if s.has("stats") {
		if _, err := call(s, s.Plugin.Service().Stats, &executorv1.StatsRequest{TaskId: c.task.GetId()}); code(err) != codes.NotFound {
			s.Errorf("Stats of an unknown task = %v, want NOT_FOUND", err)
		}
	}
	if s.has("logs") {
		if _, err := c.tryLogs(nil); code(err) != codes.NotFound {
			s.Errorf("Logs of an unknown task = %v, want NOT_FOUND", err)
		}
	}
	if response, err := c.tryShutdown(nil); err != nil || response.GetRuntime() != nil {
		s.Errorf("Shutdown of an unknown task = %v, %v; want success and no status", response, err)
	}
	if response, err := c.tryTerminate(); err != nil || response.GetRuntime() != nil {
		s.Errorf("Terminate of an unknown task = %v, %v; want success and no status", response, err)
	}
	c.removed()
}

func (s *suite) neverStarted() {
	c := s.on(s.task(Behavior{Forever: true}))
	c.prepare()
	ctx, cancel := c.context()
	defer cancel()
	var fault *wire.Error
	if _, err := c.tryWait(); !errors.As(err, &fault) || fault.Temporary || ctx.Err() != nil {
		s.Errorf("Wait of a task that was never started = %v, want a lasting error at once", err)
	}
	if response, err := c.tryShutdown(nil); err != nil || response.GetRuntime() != nil {
		s.Errorf("Shutdown of a task that was never started = %v, %v; want success and no status", response, err)
	}
	c.stopped("without Start")
	c.removed()
}

func (s *suite) repeatedCalls() {
	c := s.on(s.task(Behavior{Forever: true, Grace: 20 * time.Second, Says: []string{ready}}))
	c.prepare()
	c.prepare()
	first := c.startReady()
	second := c.start()
	if first.GetRuntime().GetId() != second.GetRuntime().GetId() || first.GetRuntime().GetPid() != second.GetRuntime().GetPid() {
		s.Errorf("Start repeated says %v, after %v", second.GetRuntime(), first.GetRuntime())
	}
	c.prepare()
	c.running()
	exits := []int32{
		c.shutdown().GetRuntime().GetExitCode(), c.shutdown().GetRuntime().GetExitCode(),
		c.terminate().GetRuntime().GetExitCode(),
		c.wait().GetRuntime().GetExitCode(), c.wait().GetRuntime().GetExitCode(),
		c.start().GetRuntime().GetExitCode(),
	}
	for _, exit := range exits {
		if exit != exits[0] {
			s.Fatalf("the exit codes told by Shutdown, Shutdown, Terminate, Wait, Wait, Start are %v", exits)
		}
	}
	if listed := c.listed(); listed.GetState() != executorv1.ListedTask_ENDED {
		s.Errorf("Start of a task that has ended made it %s", listed.GetState())
	}
	c.remove()
	c.removed()
}

func (s *suite) handles() {
	for name, next := range map[string]func(old, now []byte) []byte{
		"none":    func(_, _ []byte) []byte { return nil },
		"older":   func(old, _ []byte) []byte { return old },
		"unknown": func(_, _ []byte) []byte { return []byte("9999 {\"of\":\"a newer version\"}") },
	} {
		c := s.on(s.task(Behavior{Forever: true}))
		c.prepare()
		old := c.handle
		c.handle = next(nil, c.handle)
		c.start()
		c.handle = next(old, c.handle)
		c.running()
		if _, err := c.tryTerminate(); err != nil {
			s.Errorf("handle %s: Terminate: %v", name, err)
		}
		if ended := c.wait(); ended.GetRuntime().GetExitCode() == 0 {
			s.Errorf("handle %s: a killed task's exit code is 0", name)
		}
		c.handle = next(old, c.handle)
		c.removed()
	}
}

func (s *suite) listByNode() {
	mine := s.on(s.task(Behavior{}))
	mine.prepare()
	other := s.task(Behavior{})
	other.NodeId = nextName("node")
	theirs := s.on(other)
	theirs.prepare()
	for node, want := range map[string]string{s.node: mine.task.GetId(), other.GetNodeId(): other.GetId()} {
		listed := s.list(node)
		if len(listed) != 1 || listed[0].GetTaskId() != want {
			s.Errorf("List of node %s = %v, want task %s alone", node, listed, want)
		}
	}
	mine.remove()
	theirs.remove()
}

func (s *suite) manyAtOnce() {
	const tasks = 10
	var group sync.WaitGroup
	for i := range int32(tasks) {
		c := s.on(s.task(Behavior{ExitCode: i, RunFor: 50 * time.Millisecond}))
		group.Go(func() {
			if err := c.tryPrepare(); err != nil {
				c.Errorf("Prepare: %v", err)
				return
			}
			if _, err := c.tryStart(); err != nil {
				c.Errorf("Start: %v", err)
				return
			}
			ended, err := c.tryWait()
			if err != nil || ended.GetRuntime().GetExitCode() != i {
				c.Errorf("Wait of task %d = %v, %v", i, ended, err)
			}
			if err := c.tryRemove(); err != nil {
				c.Errorf("Remove: %v", err)
			}
			c.gone()
		})
	}
	group.Wait()
}

func (s *suite) cancelledWait() {
	c := s.on(s.task(Behavior{Forever: true}))
	c.prepare()
	c.start()
	// The second finds what became of the task once the first was cancelled, which
	// the executor may notice a moment later than this side.
	for _, span := range []time.Duration{100 * time.Millisecond, time.Second} {
		ctx, cancel := context.WithTimeout(s.Context(), span)
		_, err := s.Plugin.Service().Wait(ctx, &executorv1.WaitRequest{TaskId: c.task.GetId(), Handle: c.handle})
		cancel()
		if got := code(wire.FromStatus(err)); got != codes.DeadlineExceeded && got != codes.Canceled {
			s.Errorf("Wait of a running task, cancelled, = %v", err)
		}
	}
	c.running()
	c.removed()
}

// code is an error's status code.
func code(err error) codes.Code {
	var e *wire.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return codes.OK
}
