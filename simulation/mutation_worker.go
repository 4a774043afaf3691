package simulation

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
)

// brokenStream changes the messages of a session.
type brokenStream struct {
	grpc.ClientStream
	received func(*dispatcherv1.SessionResponse)
	sent     func(*dispatcherv1.SessionRequest)
}

func (s *brokenStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if said, ok := m.(*dispatcherv1.SessionResponse); ok && err == nil && s.received != nil {
		s.received(said)
	}
	return err
}

func (s *brokenStream) SendMsg(m any) error {
	if said, ok := m.(*dispatcherv1.SessionRequest); ok && s.sent != nil {
		// The message belongs to the worker, so a copy is changed.
		changed := proto.CloneOf(said)
		s.sent(changed)
		m = changed
	}
	return s.ClientStream.SendMsg(m)
}

func streams(hear func(*dispatcherv1.SessionResponse), say func(*dispatcherv1.SessionRequest)) grpc.StreamClientInterceptor {
	return func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		stream, err := streamer(ctx, desc, cc, method, opts...)
		if err != nil {
			return nil, err
		}
		return &brokenStream{stream, hear, say}, nil
	}
}

// lostAssignments drops some assignments, so that a worker does not learn of a task.
func lostAssignments() Mutation {
	now := every(10)
	return Mutation{Name: "lost assignments", Stream: streams(func(said *dispatcherv1.SessionResponse) {
		a := said.GetAssignments()
		if a == nil || a.Complete {
			return
		}
		a.Objects = slices.DeleteFunc(a.Objects, func(o *dispatcherv1.AssignedObject) bool {
			t := o.GetTask()
			return t != nil && t.DesiredState <= musterv1.TaskState_RUNNING && now()
		})
	}, nil)}
}

// lostOrders has a worker not hear now and then that a task is to stop, or is to go.
func lostOrders() Mutation {
	now := every(5)
	return Mutation{Name: "lost stop requests", Stream: streams(func(said *dispatcherv1.SessionResponse) {
		a := said.GetAssignments()
		if a == nil || a.Complete {
			return
		}
		a.Objects = slices.DeleteFunc(a.Objects, func(o *dispatcherv1.AssignedObject) bool {
			t := o.GetTask()
			return t != nil && t.DesiredState > musterv1.TaskState_RUNNING && now()
		})
		a.Withdrawn = slices.DeleteFunc(a.Withdrawn, func(ref *dispatcherv1.ObjectRef) bool { return ref.GetTask() != "" && now() })
	}, nil)}
}

// lostStatuses loses now and then what a worker says of a task, and acknowledges it.
func lostStatuses() Mutation {
	now := every(10)
	return Mutation{Name: "lost statuses", Stream: streams(nil, func(said *dispatcherv1.SessionRequest) {
		if r := said.GetStatusReport(); r != nil {
			r.Statuses = slices.DeleteFunc(r.Statuses, func(*dispatcherv1.ReportedStatus) bool { return now() })
		}
	})}
}

// forgetfulExecutor does not list the tasks that an earlier worker started: what runs
// keeps running, and no worker knows of it.
func forgetfulExecutor() Mutation {
	return Mutation{Name: "tasks forgotten at a restart", Executor: func(inner *null.Executor) sdk.Executor {
		return &forgetful{Executor: inner, known: map[string]bool{}}
	}}
}

type forgetful struct {
	*null.Executor
	mu    sync.Mutex
	known map[string]bool
}

func (e *forgetful) Prepare(ctx context.Context, task *sdk.Task, handle sdk.Handle) (sdk.Handle, error) {
	e.mu.Lock()
	e.known[task.GetId()] = true
	e.mu.Unlock()
	return e.Executor.Prepare(ctx, task, handle)
}

func (e *forgetful) List(ctx context.Context, nodeID string) ([]sdk.Listed, error) {
	listed, err := e.Executor.List(ctx, nodeID)
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.DeleteFunc(listed, func(l sdk.Listed) bool { return !e.known[l.TaskID] }), err
}

// doubledStarts starts each tenth task twice.
func doubledStarts() Mutation {
	now := every(10)
	return Mutation{Name: "tasks started twice", Executor: func(inner *null.Executor) sdk.Executor {
		return &doubleStarter{inner, now}
	}}
}

type doubleStarter struct {
	*null.Executor
	now func() bool
}

func (e *doubleStarter) Start(ctx context.Context, task *sdk.Task, handle sdk.Handle) (*sdk.Started, error) {
	started, err := e.Executor.Start(ctx, task, handle)
	if err != nil || !e.now() {
		return started, err
	}
	again := proto.CloneOf((*executorv1.Task)(task))
	again.Id += "-again"
	if _, err := e.Prepare(ctx, again, nil); err != nil {
		return nil, err
	}
	if _, err := e.Executor.Start(ctx, again, nil); err != nil {
		return nil, err
	}
	return started, nil
}

// ignoredShutdowns says of each fifth task that it has stopped and is gone, and lets it
// run.
func ignoredShutdowns() Mutation {
	now := every(5)
	return Mutation{Name: "tasks that run on", Executor: func(inner *null.Executor) sdk.Executor {
		return &shutdownIgnorer{Executor: inner, now: now, spared: map[string]bool{}}
	}}
}

type shutdownIgnorer struct {
	*null.Executor
	now    func() bool
	mu     sync.Mutex
	spared map[string]bool
}

func (e *shutdownIgnorer) Shutdown(ctx context.Context, ref sdk.Ref, grace *time.Duration) (*sdk.Status, error) {
	if !e.now() {
		return e.Executor.Shutdown(ctx, ref, grace)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.spared[ref.TaskID] = true
	return nil, nil
}

func (e *shutdownIgnorer) Remove(ctx context.Context, ref sdk.Ref) error {
	e.mu.Lock()
	spared := e.spared[ref.TaskID]
	e.mu.Unlock()
	if spared {
		return nil
	}
	return e.Executor.Remove(ctx, ref)
}

// falseStarts says of each fourth task that it runs, and does not start it.
func falseStarts() Mutation {
	now := every(4)
	return falseStartsOf("tasks that never started", func(string) bool { return now() })
}

func falseStartsOf(name string, which func(id string) bool) Mutation {
	return Mutation{Name: name, Executor: func(inner *null.Executor) sdk.Executor {
		return &falseStarter{Executor: inner, which: which, idle: map[string]bool{}}
	}}
}

type falseStarter struct {
	*null.Executor
	which func(id string) bool
	mu    sync.Mutex
	idle  map[string]bool
}

func (e *falseStarter) Start(ctx context.Context, task *sdk.Task, handle sdk.Handle) (*sdk.Started, error) {
	if !e.which(task.GetId()) {
		return e.Executor.Start(ctx, task, handle)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.idle[task.GetId()] = true
	return &sdk.Started{}, nil
}

func (e *falseStarter) Wait(ctx context.Context, ref sdk.Ref) (*sdk.Ended, error) {
	e.mu.Lock()
	idle := e.idle[ref.TaskID]
	e.mu.Unlock()
	if idle {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	return e.Executor.Wait(ctx, ref)
}
