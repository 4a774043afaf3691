package tasks

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/bounds"
)

const (
	// observePause is the shortest time between two reports of what an executor
	// observes. Only the newest observation is reported.
	observePause = 2 * time.Second
	// observeRetry and longestObserveRetry bound the pauses between attempts to observe.
	observeRetry        = time.Second
	longestObserveRetry = 30 * time.Second
)

// observe reports what the executor observes of the task while the call lasts.
// The caller must call stop when the call has returned.
func (c *call) observe(e *executor.Described) (stop func()) {
	if !e.Can("observe") {
		if c.known.status.Runtime.GetHealth() != nil {
			// The executor could observe it when it said that.
			c.t.post(observed{c, nil})
		}
		return func() {}
	}
	ctx, cancel := context.WithCancel(c.ctx)
	o := &observer{call: c}
	var wg sync.WaitGroup
	wg.Go(func() { o.receive(ctx, e.Executor) })
	return func() {
		cancel()
		wg.Wait()
	}
}

// observer passes a call's observations to the task's owner.
type observer struct {
	call *call

	mu sync.Mutex
	// newest is the newest observation that has not been passed on yet.
	newest *observed
	// passing is set until the pause after the last one is over.
	passing bool
}

// receive reads observations until the stream ends. If the call lasts longer than the
// stream, what was observed is no longer known to be true.
func (o *observer) receive(ctx context.Context, e executor.Executor) {
	retry := backoff.New(observeRetry, longestObserveRetry)
	for {
		err := e.Observe(ctx, o.call.ref(), func(res *executor.Observation) error {
			retry.Reset()
			o.put(res)
			return nil
		})
		// A task that ends also ends the stream, and what was last observed explains why.
		if backoff.Sleep(ctx, observePause) != nil {
			return
		}
		o.put(nil)
		failure := executor.ErrorOf(err)
		if failure == nil || !failure.Temporary {
			return
		}
		if backoff.Sleep(ctx, max(failure.Delay()-observePause, retry.Next())) != nil {
			return
		}
	}
}

// put takes in an observation, and passes it on unless there was one a moment ago.
// It is nil if nothing can be observed.
func (o *observer) put(res *executor.Observation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.newest = &observed{o.call, res}
	if !o.passing {
		o.pass()
	}
}

// pass passes the newest observation on, if there is one. The caller holds mu.
func (o *observer) pass() {
	o.passing = o.newest != nil
	if !o.passing {
		return
	}
	o.call.t.post(*o.newest)
	o.newest = nil
	time.AfterFunc(observePause, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.pass()
	})
}

// observed is the event of an observation during a call.
type observed struct {
	call *call
	// res is nil if nothing can be observed any more.
	res *executor.Observation
}

func (e observed) apply(t *task) {
	if t.call != e.call {
		return
	}
	status := &t.current.status
	runtime, message, text, containers := status.Runtime, status.Message, status.Error, status.Containers
	switch {
	case e.res == nil:
		runtime = withoutHealth(runtime)
		if e.call.observed && e.call.action == actStart {
			message, text = e.call.known.status.Message, ""
		}
	case e.call.action == actStart:
		text = bounds.Text(e.res.Error, nodereport.MaxStatusText)
		if m := bounds.Text(e.res.Message, nodereport.MaxStatusText); m != "" {
			message = m
		}
	}
	if e.call.observed = e.res != nil; e.call.observed {
		if r := bounds.Runtime(e.res.Runtime); r != nil && !proto.Equal(r, runtime) {
			runtime = r
		}
		if all := e.res.Containers; len(all) > 0 && !sameContainers(all, containers) {
			containers = all
		}
	}
	if runtime == status.Runtime && message == status.Message && text == status.Error && sameContainers(containers, status.Containers) {
		return
	}
	t.update(func(r *record) {
		r.status.Runtime, r.status.Message, r.status.Error, r.status.Containers = runtime, message, text, containers
	})
}

// withoutHealth returns a runtime status without what was observed of its health.
func withoutHealth(r *musterv1.RuntimeStatus) *musterv1.RuntimeStatus {
	if r.GetHealth() == nil {
		return r
	}
	return &musterv1.RuntimeStatus{Id: r.Id, Pid: r.Pid, ExitCode: r.ExitCode, OomKilled: r.OomKilled}
}

// restoreMessage takes back the message that an observation has set during a call
// that failed.
func (t *task) restoreMessage(c *call) {
	if message := c.known.status.Message; t.current.status.Message != message {
		t.update(func(r *record) { r.status.Message = message })
	}
}
