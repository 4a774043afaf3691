package conformance

import (
	"google.golang.org/grpc/codes"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
)

// tryUpdate calls Update with the task as it is now.
func (c *calls) tryUpdate() error {
	response, err := call(c.suite, c.Plugin.Service().Update, &executorv1.UpdateRequest{Task: c.task, Handle: c.handle})
	if err == nil {
		c.handle = response.GetHandle()
	}
	return err
}

func (s *suite) update() {
	stranger := s.on(s.task(Behavior{}))
	if !s.has("update") {
		if err := stranger.tryUpdate(); code(err) != codes.Unimplemented {
			s.Errorf("Update without the capability = %v, want UNIMPLEMENTED", err)
		}
		return
	}
	if err := stranger.tryUpdate(); code(err) != codes.NotFound {
		s.Errorf("Update of an unknown task = %v, want NOT_FOUND", err)
	}
	c := s.on(s.task(Behavior{Forever: true, Says: []string{ready}}))
	c.prepare()
	first := c.startReady()
	// Its surroundings have changed: the service has another name.
	c.task.ServiceName += "-renamed"
	again := func(when string) {
		s.Helper()
		if err := c.tryUpdate(); err != nil {
			s.Fatalf("Update %s: %v", when, err)
		}
		c.running()
		second := c.start()
		if first.GetRuntime().GetId() != second.GetRuntime().GetId() || first.GetRuntime().GetPid() != second.GetRuntime().GetPid() {
			s.Errorf("after Update %s the task is %v, it was %v", when, second.GetRuntime(), first.GetRuntime())
		}
	}
	again("of a running task")
	again("repeated")
	s.Plugin.Restart()
	again("by a new process")
	c.handle = nil
	again("without the handle")
	c.removed()
}
