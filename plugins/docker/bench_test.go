package docker_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/docker"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// bench is an executor in this process, and one task of it.
type bench struct {
	*testing.T
	*docker.Executor
	engine *client.Client
	dir    string
	task   *sdk.Task
	ref    sdk.Ref
}

func newExecutor(t *testing.T, dir string) *docker.Executor {
	t.Helper()
	executor, err := docker.New(docker.Config{StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := executor.Close(); err != nil {
			t.Error(err)
		}
	})
	return executor
}

func newBench(t *testing.T, spec *musterv1.TaskSpec) *bench {
	t.Helper()
	c := engine(t)
	dir := t.TempDir()
	id := fmt.Sprintf("t%d", time.Now().UnixNano())
	b := &bench{T: t, Executor: newExecutor(t, dir), engine: c, dir: dir, ref: sdk.Ref{TaskID: id}, task: &sdk.Task{
		Id: id, Name: "web.3." + id, ServiceId: "sid", ServiceName: "web", Slot: 3, NodeId: "n" + id, Spec: spec,
	}}
	t.Cleanup(func() {
		if err := b.Remove(context.Background(), b.ref); err != nil {
			t.Errorf("Remove: %v", err)
		}
		if found := containers(t, c, id, true); len(found) > 0 {
			t.Errorf("there is left: %q", found)
		}
	})
	return b
}

func (b *bench) context() context.Context {
	ctx, cancel := context.WithTimeout(b.Context(), 3*time.Minute)
	b.Cleanup(cancel)
	return ctx
}

func (b *bench) run() *sdk.Started {
	b.Helper()
	handle, err := b.Prepare(b.context(), b.task, nil)
	if err != nil {
		b.Fatalf("Prepare: %v", err)
	}
	b.ref.Handle = handle
	started, err := b.Start(b.context(), b.task, handle)
	if err != nil {
		b.Fatalf("Start: %v", err)
	}
	return started
}

func (b *bench) wait() *sdk.Ended {
	b.Helper()
	ended, err := b.Wait(b.context(), b.ref)
	if err != nil {
		b.Fatalf("Wait: %v", err)
	}
	return ended
}

func (b *bench) output() []string {
	b.Helper()
	var lines []string
	if err := b.Logs(b.context(), b.ref, sdk.LogOptions{}, func(line sdk.LogLine) error {
		lines = append(lines, string(line.Data))
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	return lines
}

func (b *bench) inspect() container.InspectResponse {
	b.Helper()
	found, err := b.engine.ContainerInspect(b.context(), b.task.GetName())
	if err != nil {
		b.Fatal(err)
	}
	return found
}

func shell(line string) *musterv1.ContainerSpec {
	return &musterv1.ContainerSpec{Command: []string{"/bin/sh", "-c", line}}
}

// fault returns the error as a worker reads it.
func fault(t *testing.T, err error) *wire.Error {
	t.Helper()
	var e *wire.Error
	if !errors.As(wire.FromStatus(wire.ToStatus(err, false)), &e) {
		t.Fatalf("no error where one was wanted")
	}
	return e
}
