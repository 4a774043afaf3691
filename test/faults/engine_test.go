package faults_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/engine"
	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// engineAway is how long an engine is away: long enough that all who ask it
// have noticed.
const engineAway = 8 * time.Second

// TestEngineKilled kills a Docker Engine and starts it again. While it is away no
// task is called failed. With live-restore the containers run on, and so do the
// tasks; without, the Engine that starts ends them, and each is replaced once.
func TestEngineKilled(t *testing.T) {
	t.Parallel()
	need.Met(t, engine.Missing())
	built := filepath.Join(t.TempDir(), "built")
	ok(t, rig.BuildWith(t.Context(), "../..", built, "executor-docker"))
	for name, keeps := range map[string]bool{"live-restore": true, "plain": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var args []string
			if keeps {
				args = append(args, "--live-restore")
			}
			b := newContainers(t, built, args...)
			t.Run("while tasks run", func(t *testing.T) { b.killWhileRunning(t, keeps) })
			for _, after := range []time.Duration{0, 200 * time.Millisecond, 600 * time.Millisecond} {
				t.Run(fmt.Sprint("while tasks come, after ", after), func(t *testing.T) { b.killWhile(t, after, 4) })
				t.Run(fmt.Sprint("while tasks go, after ", after), func(t *testing.T) { b.killWhile(t, after, 0) })
			}
		})
	}
}

// containers is a cluster with one worker and an engine of its own.
type containers struct {
	*rig.Rig
	engine *engine.Engine
	runs   int
}

func newContainers(t *testing.T, built string, args ...string) *containers {
	t.Helper()
	// Sockets lie in it, so its path must be short.
	dir, err := os.MkdirTemp("", "engine-")
	ok(t, err)
	e, err := engine.New(dir, args...)
	ok(t, err)
	ok(t, e.Start(t.Context()))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), waitTimeout)
		defer cancel()
		if t.Failed() {
			t.Log(e.Log())
		}
		if err := errors.Join(e.Close(ctx), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	r := startOf(t, built, cluster.Config{Embedded: true, Env: map[string][]string{"one": {"DOCKER_HOST=" + e.Host()}}}, "one")
	return &containers{Rig: r, engine: e}
}

// sleepers is the spec of a service of containers that run until they are stopped.
func sleepers(name string, replicas uint64) *musterv1.ServiceSpec {
	return &musterv1.ServiceSpec{
		Name: name,
		Task: &musterv1.TaskSpec{
			Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{
				Image: engine.Image, Command: []string{"sleep", "1000000"}, StopGracePeriod: durationpb.New(200 * time.Millisecond),
				PullOptions: &musterv1.PullOptions{Policy: musterv1.PullOptions_NEVER},
			}},
			Restart: &musterv1.RestartPolicy{Delay: durationpb.New(200 * time.Millisecond)},
		},
		Mode: &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: &replicas}},
	}
}

// exactly returns an error unless n tasks of a service run, and of its containers
// those that run are those of these tasks.
func (b *containers) exactly(ctx context.Context, service string, n int) (map[string]*musterv1.Task, error) {
	tasks, err := b.Running(ctx, service, n)
	if err != nil {
		return nil, err
	}
	all, err := b.engine.Containers(ctx)
	if err != nil {
		return nil, err
	}
	running := 0
	for _, c := range all {
		if c.Labels["com.musterhq.service.name"] != service || c.State != "running" {
			continue
		}
		running++
		if tasks[c.Labels["com.musterhq.task.id"]] == nil {
			return nil, fmt.Errorf("container %v runs and its task does not", c.Names)
		}
	}
	if running != n {
		return nil, fmt.Errorf("%d containers run, want %d", running, n)
	}
	return tasks, nil
}

func (b *containers) await(t *testing.T, service string, n int) (tasks map[string]*musterv1.Task) {
	t.Helper()
	took := wait.Within(t, 2*waitTimeout, fmt.Sprintf("%d containers of %s run", n, service), func(ctx context.Context) (err error) {
		tasks, err = b.exactly(ctx, service, n)
		return err
	})
	t.Logf("%d containers of %s ran after %v", n, service, took)
	return tasks
}

// killWhileRunning has tasks run, one service removed and one created while the
// engine is away.
func (b *containers) killWhileRunning(t *testing.T, keeps bool) {
	_, err := b.Create(t.Context(), sleepers("stays", 3))
	ok(t, err)
	_, err = b.Create(t.Context(), sleepers("goes", 2))
	ok(t, err)
	before := b.await(t, "stays", 3)
	b.await(t, "goes", 2)
	ok(t, b.engine.Kill())
	ok(t, b.Remove(t.Context(), "goes"))
	_, err = b.Create(t.Context(), sleepers("comes", 2))
	ok(t, err)
	for began := time.Now(); time.Since(began) < engineAway; {
		now, err := b.Running(t.Context(), "stays", 3)
		ok(t, err)
		// Without its engine a container is a process like any other.
		ok(t, rig.Same(before, now))
		<-time.After(100 * time.Millisecond)
	}
	ok(t, b.engine.Start(t.Context()))
	after := b.await(t, "stays", 3)
	if keeps {
		ok(t, rig.Same(before, after))
	} else {
		for id := range before {
			if after[id] != nil {
				t.Errorf("task %s runs, and its container was ended", id)
			}
		}
		once(t, b.Rig, "stays", 2)
	}
	b.await(t, "comes", 2)
	wait.Within(t, waitTimeout, "the containers of what was removed are gone", func(ctx context.Context) error {
		return b.none(ctx, "goes")
	})
	for _, service := range []string{"stays", "comes"} {
		ok(t, b.Remove(t.Context(), service))
		wait.Within(t, waitTimeout, "no containers are left", func(ctx context.Context) error { return b.none(ctx, service) })
	}
}

// none returns an error while a service has a container.
func (b *containers) none(ctx context.Context, service string) error {
	all, err := b.engine.Containers(ctx)
	if err != nil {
		return err
	}
	for _, c := range all {
		if c.Labels["com.musterhq.service.name"] == service {
			return fmt.Errorf("there is container %v, %s", c.Names, c.State)
		}
	}
	return nil
}

// killWhile scales a service of two tasks and, some time after, kills the engine
// and starts it again.
func (b *containers) killWhile(t *testing.T, after time.Duration, replicas uint64) {
	b.runs++
	service := fmt.Sprint("scaled-", b.runs)
	id, err := b.Create(t.Context(), sleepers(service, 2))
	ok(t, err)
	b.await(t, service, 2)
	ok(t, b.Scale(t.Context(), id, replicas))
	<-time.After(after)
	ok(t, b.engine.Kill())
	ok(t, b.engine.Start(t.Context()))
	b.await(t, service, int(replicas))
	ok(t, b.Remove(t.Context(), id))
	wait.Within(t, waitTimeout, "no containers are left", func(ctx context.Context) error { return b.none(ctx, service) })
}
