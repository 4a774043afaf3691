package conformance

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// tryObserve returns all that Observe reports until it ends or ctx ends.
func (c *calls) tryObserve(ctx context.Context) ([]*executorv1.ObserveResponse, error) {
	return collect(c.Plugin.Service().Observe(ctx, &executorv1.ObserveRequest{TaskId: c.task.GetId(), Handle: c.handle}))
}

func (s *suite) observe() {
	unknown := s.on(s.task(Behavior{}))
	ctx, cancel := unknown.context()
	defer cancel()
	if _, err := unknown.tryObserve(ctx); !s.has("observe") {
		if code(err) != codes.Unimplemented {
			s.Errorf("Observe without the capability = %v, want UNIMPLEMENTED", err)
		}
		return
	} else if code(err) != codes.NotFound {
		s.Errorf("Observe of an unknown task = %v, want NOT_FOUND", err)
	}
	s.observeRunning()
	s.observeSick()
}

// observeRunning checks that observers change nothing about a running task, see
// the task that runs, and come to an end with it.
func (s *suite) observeRunning() {
	c := s.on(s.task(Behavior{Forever: true}))
	c.prepare()
	started := c.start()
	for _, when := range []string{"of a running task", "by a new process"} {
		ctx, cancel := context.WithTimeout(s.Context(), time.Second)
		all, err := c.tryObserve(ctx)
		cancel()
		if err != nil && code(err) != codes.DeadlineExceeded {
			s.Errorf("Observe %s, cancelled, = %v", when, err)
		}
		for _, response := range all {
			if got, want := response.GetRuntime().GetId(), started.GetRuntime().GetId(); got != want {
				s.Errorf("Observe %s reports runtime id %q, and Start said %q", when, got, want)
			}
		}
		c.running()
		s.Plugin.Restart()
	}
	ended := make(chan error, 1)
	ctx, cancel := c.context()
	defer cancel()
	go func() {
		_, err := c.tryObserve(ctx)
		ended <- err
	}()
	c.terminate()
	if err := <-ended; err != nil {
		s.Errorf("Observe of a task that ends = %v, want it to end as well", err)
	}
	if _, err := c.tryObserve(ctx); err != nil {
		s.Errorf("Observe of a task that has ended = %v, want it to end at once", err)
	}
	c.removed()
}

// observeSick checks that a task whose Start fails because of its health check is
// observed to be starting, with the check's output.
func (s *suite) observeSick() {
	c := s.on(s.task(Behavior{Forever: true, Sick: true}))
	c.prepare()
	ctx, cancel := c.context()
	defer cancel()
	var all []*executorv1.ObserveResponse
	observed := make(chan error, 1)
	go func() {
		var err error
		all, err = c.tryObserve(ctx)
		observed <- err
	}()
	if _, err := c.tryStart(); err != nil {
		if observeErr := <-observed; observeErr != nil {
			s.Errorf("Observe of a task that does not become healthy = %v, want it to end with the task", observeErr)
		}
		if !explainsFailure(all) {
			s.Errorf("Start failed (%v), and Observe did not report before that the health check failed with exit code %d and output %q: %v",
				err, SickExitCode, SickOutput, all)
		}
	}
	// A task that starts anyway has no health check: this kind of runtime
	// has none.
	c.removed()
}

// explainsFailure reports whether an observation says that the health check of a
// starting task failed.
func explainsFailure(all []*executorv1.ObserveResponse) bool {
	for _, response := range all {
		health := response.GetRuntime().GetHealth()
		if response.GetMessage() != "" && strings.Contains(response.GetError(), SickOutput) && health.GetState() == musterv1.Health_STARTING &&
			health.GetExitCode() == SickExitCode && health.GetOutput() == SickOutput {
			return true
		}
	}
	return false
}
