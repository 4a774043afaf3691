//go:build linux

package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/internal/health"
	"github.com/musterhq/muster/plugins/internal/thread"
	"github.com/musterhq/muster/plugins/process/internal/taskdir"
)

// checkOutput is how many bytes of a check's output are read. The others are dropped.
const checkOutput = 4096

// notRun is the exit code of a check that could not be run, or took too long.
const notRun = -1

// checks are the health checks of a running command, one after the other. Methods of a
// nil *checks do nothing.
type checks struct {
	config  taskdir.Check
	started time.Time
	health  taskdir.Health
	// timer fires when the next check is due or the running one takes too long.
	timer *time.Timer
	// running is nil between checks.
	running *check
}

// check is a running health check.
type check struct {
	begun time.Time
	// leader is the process id of the command, and that of its group, until it has
	// been waited for; 0 if there is none.
	leader int
	code   int32
	// late is true if it took longer than it may.
	late bool
	// results receives once: when all output was read, or the port has answered.
	results chan result
	result  *result
	// expire gives the sender to results until a time.
	expire func(time.Time)
}

// result is what a check has written, and the exit code of one without a command.
type result struct {
	code   int32
	output string
}

func newChecks(config taskdir.Check) *checks {
	c := &checks{config: config, started: time.Now(), health: taskdir.Health{Retries: config.Retries}}
	c.timer = time.NewTimer(c.pause())
	return c
}

// pause returns the time until the next check.
func (c *checks) pause() time.Duration {
	if c.starting(time.Now()) {
		return c.config.StartInterval
	}
	return c.config.Interval
}

// starting reports whether a check that fails does not count.
func (c *checks) starting(at time.Time) bool {
	return !c.health.Succeeded && at.Sub(c.started) < c.config.StartPeriod
}

// due receives when tick has to be called.
func (c *checks) due() <-chan time.Time {
	if c == nil {
		return nil
	}
	return c.timer.C
}

// results receives what has to be handed to ended.
func (c *checks) results() <-chan result {
	if c == nil || c.running == nil {
		return nil
	}
	return c.running.results
}

// tick begins a check, or ends the one that takes too long.
func (c *checks) tick(s *supervisor) {
	if c.running != nil {
		c.running.late, c.running.code = true, notRun
		c.running.kill()
		return
	}
	c.running = &check{begun: time.Now(), results: make(chan result, 1)}
	c.timer.Reset(c.config.Timeout)
	if c.config.Port != 0 {
		c.running.dial(s, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), c.config.Port))
	} else if err := c.running.run(s, c.config); err != nil {
		c.running.kill()
		c.running.results <- result{code: notRun, output: fmt.Sprintf("run the health check: %v", err)}
	}
}

// run starts the command of a check.
func (r *check) run(s *supervisor, config taskdir.Check) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	ours, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = theirs.Close() }()
	r.leader, err = s.fork(config.Path, config.Args, []*os.File{null, theirs, theirs}, &syscall.SysProcAttr{Setpgid: true})
	if err != nil {
		return errors.Join(err, ours.Close())
	}
	// The deadline of a file that is closed does not matter.
	r.expire = func(at time.Time) { _ = ours.SetReadDeadline(at) }
	s.copies.Go(func() {
		var output strings.Builder
		// An error ends the output as its end does.
		_, _ = io.CopyN(&output, ours, checkOutput)
		_, _ = io.Copy(io.Discard, ours)
		_ = ours.Close()
		r.results <- result{output: output.String()}
	})
	return nil
}

// dial connects to a port in the network of the task.
func (r *check) dial(s *supervisor, address netip.AddrPort) {
	ctx, cancel := context.WithCancel(context.Background())
	r.expire = func(time.Time) { cancel() }
	connect := func() error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp4", address.String())
		if err != nil {
			return err
		}
		return conn.Close()
	}
	s.copies.Go(func() {
		defer cancel()
		err := s.inNetwork(connect)
		switch {
		case err == nil:
			r.results <- result{}
		case ctx.Err() != nil:
			r.results <- result{code: notRun}
		default:
			r.results <- result{code: 1, output: err.Error()}
		}
	})
}

// inNetwork calls f on a thread that is in the network namespace of the task.
func (s *supervisor) inNetwork(f func() error) error {
	if !s.spec.Networked {
		return f()
	}
	network, err := networkOf(s.dir)
	if err != nil {
		return err
	}
	return thread.Run(func() error {
		if err := setNetwork(network.Namespace); err != nil {
			return err
		}
		return f()
	})
}

// kill ends a check. Its result is sent at once.
func (r *check) kill() {
	if r.leader != 0 {
		_ = unix.Kill(-r.leader, unix.SIGKILL)
		r.leader = 0
	}
	if r.expire != nil {
		r.expire(time.Unix(1, 0))
	}
}

// reaped takes in how a process has ended that may be the command of the check.
func (c *checks) reaped(pid int, status unix.WaitStatus) {
	if c == nil || c.running == nil || pid != c.running.leader {
		return
	}
	c.running.leader, c.running.code = 0, exitCode(status)
	// Processes that it has left may hold its output open.
	c.running.expire(time.Now().Add(drainTime))
}

// ended takes in the result of the running check.
func (c *checks) ended(r result) {
	c.running.result = &r
	if r.code != 0 {
		c.running.code = r.code
	}
}

// conclude records a check that has ended. It returns what the checks say if the task
// is unhealthy now.
func (c *checks) conclude(dir taskdir.Dir) *taskdir.Health {
	if c == nil || c.running == nil || c.running.result == nil || c.running.leader != 0 {
		return nil
	}
	ended := c.running
	c.running = nil
	c.health.Code, c.health.Output = ended.code, ""
	if ended.code == 0 {
		c.health.Succeeded, c.health.Failed = true, 0
	} else {
		c.health.Output = health.Output(ended.said(c.config.Timeout))
		if !c.starting(ended.begun) {
			c.health.Failed++
		}
	}
	c.timer.Reset(c.pause())
	if err := dir.SetHealth(c.health); err != nil {
		// The next check writes it again.
		fmt.Fprintf(os.Stderr, "%s %v\n", time.Now().Format(time.RFC3339), err)
	}
	if !c.health.Unhealthy() {
		return nil
	}
	said := c.health
	return &said
}

// said returns the output of a check that has failed.
func (r *check) said(timeout time.Duration) string {
	if !r.late {
		return r.result.output
	}
	return strings.TrimSuffix(fmt.Sprintf("the health check took longer than %s: %s", timeout, r.result.output), ": ")
}

// stop ends the checks.
func (c *checks) stop() {
	if c == nil {
		return
	}
	c.timer.Stop()
	if c.running != nil {
		c.running.kill()
		c.running = nil
	}
}
