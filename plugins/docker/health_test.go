package docker_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk"
)

func check(test string, retries uint32) *musterv1.HealthConfig {
	return &musterv1.HealthConfig{
		Test: []string{"CMD-SHELL", test}, Interval: durationpb.New(100 * time.Millisecond),
		Timeout: durationpb.New(time.Minute), Retries: retries,
	}
}

func TestStartWaitsForHealth(t *testing.T) {
	t.Parallel()
	spec := shell("sleep 1; touch /tmp/ready; while :; do sleep 0.05; done")
	spec.Healthcheck = check("test -e /tmp/ready", 100)
	spec.Healthcheck.Test = []string{"CMD", "/bin/ls", "/tmp/ready"}
	b := newBench(t, taskSpec(spec))
	begun := time.Now()
	b.run()
	if took := time.Since(begun); took < time.Second {
		t.Errorf("Start returned after %s, and the container is healthy after 1 s", took)
	}
	if health := b.inspect().State.Health; health == nil || health.Status != container.Healthy {
		t.Errorf("health = %+v", health)
	}
	// A container that was healthy and is told to stop was not unhealthy.
	if _, err := b.Shutdown(b.context(), b.ref, new(time.Second)); err != nil {
		t.Fatal(err)
	}
	if ended := b.wait(); ended.Error != "" {
		t.Errorf("Wait = %+v", ended)
	}
}

func TestStartOfAnUnhealthyContainerFails(t *testing.T) {
	t.Parallel()
	spec := shell("trap 'exit 0' TERM; while :; do sleep 0.05; done")
	spec.Healthcheck = check("echo no good; exit 1", 2)
	b := newBench(t, taskSpec(spec))
	if _, err := b.Prepare(b.context(), b.task, nil); err != nil {
		t.Fatal(err)
	}
	_, err := b.Start(b.context(), b.task, nil)
	if got := fault(t, err); got.Temporary || !strings.Contains(got.Error(), "unhealthy") || !strings.Contains(got.Error(), "no good") {
		t.Errorf("Start = %+v (%v)", got, got)
	}
	if b.inspect().State.Running {
		t.Error("the unhealthy container still runs")
	}
}

func TestUnhealthyStartTellsThatCheckWroteNoOutput(t *testing.T) {
	t.Parallel()
	spec := shell("trap 'exit 0' TERM; while :; do sleep 0.05; done")
	spec.Healthcheck = check("exit 1", 2)
	b := newBench(t, taskSpec(spec))
	if _, err := b.Prepare(b.context(), b.task, nil); err != nil {
		t.Fatal(err)
	}
	_, err := b.Start(b.context(), b.task, nil)
	const want = "exit code 1 and wrote no output"
	if got := fault(t, err); !strings.Contains(got.Error(), want) {
		t.Errorf("Start = %v, want %q", got, want)
	}
}

func TestAContainerThatEndsBeforeItIsHealthy(t *testing.T) {
	t.Parallel()
	spec := shell("sleep 0.5; exit 9")
	spec.Healthcheck = check("exit 1", 1000)
	b := newBench(t, taskSpec(spec))
	b.run()
	if ended := b.wait(); ended.Status.GetExitCode() != 9 || ended.Error != "" {
		t.Errorf("Wait = %+v, want exit code 9", ended)
	}
}

func TestAContainerThatBecomesUnhealthyIsStopped(t *testing.T) {
	t.Parallel()
	// It is healthy until it gets SIGUSR1.
	spec := shell("trap 'exit 0' TERM; trap 'touch /tmp/sick' USR1; while :; do sleep 0.05; done")
	spec.Healthcheck = check(`! ls /tmp/sick || { printf 'sick \033[31m\n as\342\200\256 a dog'; exit 4; }`, 2)
	b := newBench(t, taskSpec(spec))
	b.run()
	if err := b.engine.ContainerKill(b.context(), b.task.GetName(), "USR1"); err != nil {
		t.Fatal(err)
	}
	// Every Wait reports the same, however late.
	const want = "unhealthy: its health check ended with exit code 4: /tmp/sick sick [31m as a dog"
	for range 2 {
		ended := b.wait()
		if ended.Error != want {
			t.Errorf("Wait's error = %q, want %q", ended.Error, want)
		}
		if got := ended.Status.GetHealth(); got.GetState() != sdk.HealthUnhealthy || got.GetExitCode() != 4 || got.GetOutput() != "/tmp/sick sick [31m as a dog" {
			t.Errorf("health after the end = %v, want it unhealthy with exit code 4 and the output", got)
		}
	}
}

// observe collects what Observe reports, until enough says that it is enough or
// Observe returns.
func (b *bench) observe(enough func(sdk.Observation) bool) (last sdk.Observation, all []sdk.Observation, err error) {
	done := errors.New("enough")
	err = b.Observe(b.context(), b.ref, func(o sdk.Observation) error {
		last, all = o, append(all, o)
		if enough(o) {
			return done
		}
		return nil
	})
	if errors.Is(err, done) {
		err = nil
	}
	return last, all, err
}

func TestObserveReportsFailedChecksDuringStart(t *testing.T) {
	t.Parallel()
	spec := shell("trap 'exit 0' TERM; while :; do sleep 0.05; done")
	spec.Healthcheck = check("echo connection refused; test -e /tmp/ready", 1000)
	b := newBench(t, taskSpec(spec))
	var err error
	if b.ref.Handle, err = b.Prepare(b.context(), b.task, nil); err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() {
		_, err := b.Start(b.context(), b.task, b.ref.Handle)
		started <- err
	}()
	last, _, err := b.observe(func(o sdk.Observation) bool { return o.Status.GetHealth().GetFailedChecks() >= 2 })
	if err != nil {
		t.Fatal(err)
	}
	health := last.Status.GetHealth()
	if health.GetState() != sdk.HealthStarting || health.GetRetries() != 1000 || health.GetExitCode() != 1 || health.GetOutput() != "connection refused" {
		t.Errorf("health during Start = %v", health)
	}
	want := fmt.Sprintf("%d of 1000 health checks failed: exit code 1: connection refused", health.GetFailedChecks())
	if last.Message != "waiting for the health check" || last.Error != want {
		t.Errorf("Observe = %q, %q; want it waiting, and %q", last.Message, last.Error, want)
	}
	if code, err := b.Exec(b.context(), b.ref, sdk.Command{Args: []string{"touch", "/tmp/ready"}}, sdk.ExecIO{Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: io.Discard}); code != 0 || err != nil {
		t.Fatalf("Exec = %d, %v", code, err)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	last, all, err := b.observe(func(o sdk.Observation) bool { return o.Status.GetHealth().GetState() == sdk.HealthHealthy })
	if err != nil || last.Message != "" || last.Error != "" || last.Status.GetHealth().GetOutput() != "" || len(all) != 1 {
		t.Errorf("Observe of a healthy container = %+v, %v; want one observation, healthy", all, err)
	}
}

func TestObserveEndsWithoutHealthCheck(t *testing.T) {
	t.Parallel()
	for name, healthcheck := range map[string]*musterv1.HealthConfig{"none": nil, "NONE": {Test: []string{"NONE"}}} {
		spec := shell("trap 'exit 0' TERM; while :; do sleep 0.05; done")
		spec.Healthcheck = healthcheck
		b := newBench(t, taskSpec(spec))
		b.run()
		if _, all, err := b.observe(func(sdk.Observation) bool { return false }); err != nil || len(all) > 0 {
			t.Errorf("%s: Observe = %+v, %v; want the end at once", name, all, err)
		}
	}
}

func TestObserveEndsWithTheContainer(t *testing.T) {
	t.Parallel()
	spec := shell("trap 'exit 0' TERM; while :; do sleep 0.05; done")
	spec.Healthcheck = check("true", 2)
	b := newBench(t, taskSpec(spec))
	b.run()
	_, all, err := b.observe(func(o sdk.Observation) bool {
		if _, err := b.Terminate(b.context(), b.ref); err != nil {
			t.Error(err)
		}
		return false
	})
	if err != nil || len(all) == 0 {
		t.Errorf("Observe = %+v, %v; want it to end with the container", all, err)
	}
	if _, _, err := b.observe(func(sdk.Observation) bool { return false }); err != nil {
		t.Errorf("Observe of a container that has ended = %v", err)
	}
}

func TestOOMKill(t *testing.T) {
	t.Parallel()
	// The container outlives what was killed for a while: containerd says nothing of
	// it any more once the container's group is gone, and a busy machine may get there
	// first.
	spec := taskSpec(shell("head -c 200000000 /dev/zero | tail >/dev/null; code=$?; sleep 2; exit $code"))
	spec.Resources = &musterv1.ResourceRequirements{Limits: &musterv1.Limits{MemoryBytes: 16 << 20}, SwapBytes: new(int64(0))}
	b := newBench(t, spec)
	b.run()
	if ended := b.wait(); !ended.Status.GetOomKilled() || ended.Status.GetExitCode() == 0 {
		t.Errorf("Wait = %+v, want it killed for want of memory", ended)
	}
}
