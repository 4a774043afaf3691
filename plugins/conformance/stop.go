package conformance

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
)

// killed is the exit code of a task that SIGKILL ended.
const killed = 128 + 9

// long is a grace period that no call is given the time to wait for.
const long = time.Hour

func (s *suite) shutdown() {
	const brief = 300 * time.Millisecond
	for name, test := range map[string]struct {
		behavior    Behavior
		grace       *durationpb.Duration
		atLeast     time.Duration
		wantsKilled bool
	}{
		"polite":            {behavior: Behavior{Forever: true, Says: []string{ready}, Grace: long}},
		"stubborn, by spec": {behavior: Behavior{Forever: true, Says: []string{ready}, Stubborn: true, Grace: brief}, atLeast: brief, wantsKilled: true},
		"stubborn, by call": {behavior: Behavior{Forever: true, Says: []string{ready}, Stubborn: true, Grace: long}, grace: durationpb.New(brief), atLeast: brief, wantsKilled: true},
		"no grace":          {behavior: Behavior{Forever: true, Says: []string{ready}, Stubborn: true, Grace: long}, grace: durationpb.New(0), wantsKilled: true},
	} {
		c := s.on(s.task(test.behavior))
		c.prepare()
		c.startReady()
		waiting := c.waitBeside()
		begun := time.Now()
		response, err := c.tryShutdown(test.grace)
		took := time.Since(begun)
		if err != nil {
			s.Fatalf("%s: Shutdown: %v", name, err)
		}
		c.stopped(name + ": after Shutdown")
		// An executor may count its grace period in whole seconds.
		if took < test.atLeast {
			s.Errorf("%s: Shutdown took %s, and the grace period is %s", name, took, test.atLeast)
		}
		got := response.GetRuntime().GetExitCode()
		if test.wantsKilled && got != killed {
			s.Errorf("%s: exit code = %d, want %d", name, got, killed)
		}
		if ended := <-waiting; ended.GetRuntime().GetExitCode() != got {
			s.Errorf("%s: Wait beside Shutdown says %v, want exit code %d", name, ended, got)
		}
		c.removed()
	}
}

// waitBeside waits for the task in the background.
func (c *calls) waitBeside() <-chan *executorv1.WaitResponse {
	result := make(chan *executorv1.WaitResponse, 1)
	handle := c.handle
	go func() {
		beside := &calls{suite: c.suite, task: c.task, handle: handle}
		ended, err := beside.tryWait()
		if err != nil {
			c.Errorf("Wait beside another call: %v", err)
		}
		result <- ended
	}()
	return result
}

func (s *suite) terminate() {
	c := s.on(s.task(Behavior{Forever: true, Says: []string{ready}, Stubborn: true, Grace: long}))
	c.prepare()
	c.startReady()
	if got := c.terminate().GetRuntime().GetExitCode(); got != killed {
		s.Errorf("exit code = %d, want %d", got, killed)
	}
	c.stopped("after Terminate")
	c.removed()
}

func (s *suite) removeWhileRunning() {
	c := s.on(s.task(Behavior{Forever: true, Says: []string{ready}, Stubborn: true, Grace: long}))
	c.prepare()
	c.startReady()
	c.handle = nil
	c.removed()
}
