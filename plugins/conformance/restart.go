package conformance

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os/exec"
	"time"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

func (s *suite) restartBetweenCalls() {
	c := s.on(s.task(Behavior{Forever: true, Says: []string{ready}}))
	c.prepare()
	s.Plugin.Restart()
	if listed := c.listed(); listed.GetState() != executorv1.ListedTask_PREPARED {
		s.Errorf("a new process lists a prepared task as %s", listed.GetState())
	}
	c.prepare()
	s.Plugin.Restart()
	first := c.startReady()
	s.Plugin.Restart()
	c.running()
	again := c.start()
	if first.GetRuntime().GetId() != again.GetRuntime().GetId() || first.GetRuntime().GetPid() != again.GetRuntime().GetPid() {
		s.Errorf("a new process says the task is %v, it was %v", again.GetRuntime(), first.GetRuntime())
	}
	c.running()
	response := c.shutdown()
	s.Plugin.Restart()
	if got, want := c.wait().GetRuntime().GetExitCode(), response.GetRuntime().GetExitCode(); got != want {
		s.Errorf("a new process says exit code %d, it was %d", got, want)
	}
	c.remove()
	s.Plugin.Restart()
	c.gone()
	c.remove()
}

func (s *suite) endWhileAway() {
	c := s.on(s.task(Behavior{RunFor: 500 * time.Millisecond, ExitCode: 7}))
	c.prepare()
	c.start()
	s.Plugin.Kill()
	// No process is there to see the end.
	if s.Running != nil {
		if !eventually(s.Context(), s.patience(), func() bool { return s.Running(c.task.GetId()) == 0 }) {
			s.Fatal("the task did not end while the executor's process was away")
		}
	}
	s.Plugin.Start()
	if ended := c.wait(); ended.GetRuntime().GetExitCode() != 7 || ended.GetEndedAt() == nil {
		s.Errorf("of an end that it did not see a new process says %v, want exit code 7", ended)
	}
	c.removed()
}

// killedAtAnyMoment kills the executor's process in the midst of each call, at
// several moments. A worker that is still there repeats the call; one that has
// lost its memory removes what List finds. Neither may leave anything doubled,
// lost or orphaned.
func (s *suite) killedAtAnyMoment() {
	moments := []time.Duration{0, time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 40 * time.Millisecond}
	if s.Slow {
		moments = []time.Duration{0, 20 * time.Millisecond, 120 * time.Millisecond}
	}
	s.killedAt(moments, s.task)
}

// killedAt does so with tasks that newTask makes.
func (s *suite) killedAt(moments []time.Duration, newTask func(Behavior) *executorv1.Task) {
	for _, during := range []string{"Prepare", "Start", "Shutdown", "Remove"} {
		for _, moment := range moments {
			c := s.on(newTask(Behavior{Forever: true, Says: []string{ready}}))
			c.killDuring(during, moment)
			c.repeat(during)
			c.removed()
			if during == "Prepare" || during == "Start" {
				orphan := s.on(newTask(Behavior{Forever: true}))
				orphan.killDuring(during, moment)
				for _, listed := range s.list(s.node) {
					request := &executorv1.RemoveRequest{TaskId: listed.GetTaskId(), Handle: listed.GetHandle()}
					if _, err := call(s, s.Plugin.Service().Remove, request); err != nil {
						s.Errorf("Remove of what List found: %v", err)
					}
				}
				orphan.gone()
			}
			if s.Failed() {
				s.Fatalf("killed %s after the begin of %s", moment, during)
			}
		}
	}
}

// killDuring brings a task to a call, kills the process in it, and starts a new
// process.
func (c *calls) killDuring(call string, moment time.Duration) {
	c.Helper()
	// The call that does not return leaves the handle as it was.
	killed := &calls{suite: c.suite, task: c.task}
	during := map[string]func(){
		"Prepare":  func() { _ = killed.tryPrepare() },
		"Start":    func() { _, _ = killed.tryStart() },
		"Shutdown": func() { _, _ = killed.tryShutdown(nil) },
		"Remove":   func() { _ = killed.tryRemove() },
	}[call]
	switch call {
	case "Start":
		c.prepare()
	case "Shutdown":
		c.prepare()
		c.startReady()
	case "Remove":
		c.prepare()
		c.start()
	}
	killed.handle, killed.network = c.handle, c.network
	done := make(chan struct{})
	go func() {
		defer close(done)
		during()
	}()
	timer := time.NewTimer(moment)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-done:
	}
	c.Plugin.Kill()
	<-done
	c.Plugin.Start()
}

// repeat makes the call again, as a worker does that does not know whether it
// was carried out.
func (c *calls) repeat(call string) {
	c.Helper()
	switch call {
	case "Prepare":
		c.prepare()
		c.start()
		c.running()
	case "Start":
		c.start()
		c.running()
	case "Shutdown":
		response := c.shutdown()
		if got, want := c.wait().GetRuntime().GetExitCode(), response.GetRuntime().GetExitCode(); got != want || response.GetRuntime() == nil {
			c.Errorf("Wait says exit code %d, Shutdown said %v", got, response.GetRuntime())
		}
		c.stopped("after Shutdown")
	}
}

// closes checks that the process ends when its host dies, by the closing of the
// pipe that the host reads.
func (s *suite) closes() {
	ctx, cancel := context.WithTimeout(s.Context(), s.patience())
	defer cancel()
	model := s.Plugin.cmd()
	cmd := exec.CommandContext(ctx, model.Path, model.Args[1:]...)
	cmd.Env = append(model.Env, wire.CookieKey+"="+wire.CookieValue, "PLUGIN_PROTOCOL_VERSIONS=1", "PLUGIN_CLIENT_CERT="+s.certificate())
	output, err := cmd.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	if line, err := bufio.NewReader(output).ReadString('\n'); err != nil {
		s.Errorf("the executor's first line = %q, %v", line, err)
	}
	if err := output.Close(); err != nil {
		s.Error(err)
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		s.Errorf("the executor's process outlives its host: %v", err)
	}
}

// certificate is a worker's, as go-plugin makes one.
func (s *suite) certificate() string {
	s.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		s.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
