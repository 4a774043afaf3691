package docker_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"

	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

func TestAStrangersContainerIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := newBench(t, taskSpec(shell("true")))
	stranger, err := b.engine.ContainerCreate(b.context(), &container.Config{Image: testImage, Cmd: []string{"true"}}, nil, nil, nil, b.task.GetName())
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Prepare(b.context(), b.task, nil)
	if got := fault(t, err); got.Temporary || got.Blame != wire.BlameNode || !strings.Contains(got.Error(), b.task.GetName()) {
		t.Errorf("Prepare = %+v (%v)", got, got)
	}
	if err := b.Remove(b.context(), b.ref); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if err := b.engine.ContainerRemove(b.context(), stranger.ID, container.RemoveOptions{}); err != nil {
		t.Errorf("the stranger's container is gone: %v", err)
	}
}

func TestNoteThatAKilledProcessDidNotFinishIsListedAndRemoved(t *testing.T) {
	t.Parallel()
	b := newBench(t, taskSpec(shell("true")))
	path := filepath.Join(b.dir, b.task.GetId()+".creating.new")
	if err := os.WriteFile(path, []byte(`{"taskId":`), 0o600); err != nil {
		t.Fatal(err)
	}
	listed, err := b.List(b.context(), b.task.GetNodeId())
	if err != nil || len(listed) != 1 || listed[0].TaskID != b.task.GetId() || listed[0].State != sdk.Prepared {
		t.Errorf("List = %v, %v; want the task, prepared", listed, err)
	}
	if err := b.Remove(b.context(), b.ref); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the unfinished note is still there: %v", err)
	}
}

// A note of a creation whose container never came is listed, and goes with
// Remove, which leaves nothing.
func TestANoteOfACreation(t *testing.T) {
	t.Parallel()
	b := newBench(t, taskSpec(shell("true")))
	note := fmt.Sprintf(`{"taskId":%q,"nodeId":%q,"name":%q,"image":%q}`, b.task.GetId(), b.task.GetNodeId(), b.task.GetName(), testImage)
	path := filepath.Join(b.dir, b.task.GetId()+".creating")
	if err := os.WriteFile(path, []byte(note), 0o600); err != nil {
		t.Fatal(err)
	}
	listed, err := b.List(b.context(), b.task.GetNodeId())
	if err != nil || len(listed) != 1 || listed[0].TaskID != b.task.GetId() || listed[0].State != sdk.Prepared {
		t.Errorf("List = %v, %v; want the task, prepared", listed, err)
	}
	if err := b.Remove(b.context(), b.ref); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the note is still there: %v", err)
	}
	if left := containers(t, b.engine, b.task.GetId(), true); len(left) > 0 {
		t.Errorf("there is left: %q", left)
	}
}
