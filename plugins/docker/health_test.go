package docker_test

import (
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
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
	// It is healthy from its first moment until it is told to be so no more.
	spec := shell("trap 'exit 0' TERM; trap 'touch /tmp/sick' USR1; while :; do sleep 0.05; done")
	spec.Healthcheck = check("! ls /tmp/sick", 2)
	b := newBench(t, taskSpec(spec))
	b.run()
	if err := b.engine.ContainerKill(b.context(), b.task.GetName(), "USR1"); err != nil {
		t.Fatal(err)
	}
	// Whoever asks later is told the same.
	for range 2 {
		if ended := b.wait(); ended.Error != "unhealthy" {
			t.Errorf("Wait = %+v, want unhealthy", ended)
		}
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
