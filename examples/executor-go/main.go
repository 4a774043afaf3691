// Command muster-executor-shell is an example of an executor for Muster: its tasks are
// scripts for the shell. See docs/executors.md.
package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/detached"
)

// version is what the build says: go build -ldflags "-X main.version=0.2.0".
var version = "0.1.0"

// schema is what Muster holds a payload to when a user submits it.
const schema = `{
	"type": "object",
	"required": ["script"],
	"additionalProperties": false,
	"properties": {"script": {"type": "string", "minLength": 1, "description": "what /bin/sh runs"}}
}`

type payload struct {
	Script string `json:"script"`
}

// shell has a directory for each task, named after the node and the task. It knows
// nothing besides, so that a new process of this program, after a crash or an
// upgrade, knows all that the one before it knew.
type shell struct{ dir string }

func main() {
	sdk.Serve(&shell{dir: sdk.StateDir(filepath.Join(os.TempDir(), "executor-shell"))})
}

// Describe says what this executor is. What else it can do (logs, stats, exec) Muster
// would see from further methods.
func (*shell) Describe(context.Context) (*sdk.Description, error) {
	return &sdk.Description{
		Name: "shell", Version: version, Healthy: true, Kinds: []string{"shell"}, PayloadSchema: schema,
	}, nil
}

// find returns a task's directory.
func (s *shell) find(task string) (string, error) {
	found, err := filepath.Glob(filepath.Join(s.dir, "*."+task))
	if err == nil && len(found) == 0 {
		err = sdk.NotFound(task)
	}
	return strings.Join(found, ""), err
}

// Prepare makes the directory. From here on List finds the task.
func (s *shell) Prepare(_ context.Context, task *sdk.Task, _ sdk.Handle) (sdk.Handle, error) {
	if _, err := sdk.Decode[payload](task); err != nil {
		return nil, err
	}
	return nil, os.MkdirAll(filepath.Join(s.dir, task.GetNodeId()+"."+task.GetId()), 0o700)
}

// Start starts the script, unless an earlier call did.
func (s *shell) Start(ctx context.Context, task *sdk.Task, _ sdk.Handle) (*sdk.Started, error) {
	in, err := sdk.Decode[payload](task)
	if err != nil {
		return nil, err
	}
	dir, err := s.find(task.GetId())
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/bin/sh", "-c", in.Script)
	cmd.Env = append(os.Environ(), "MUSTER_TASK_ID="+task.GetId())
	process, err := detached.Start(ctx, dir, cmd)
	return &sdk.Started{Status: process.Status}, err
}

// Wait returns when the script has ended, however and whenever that was.
func (s *shell) Wait(ctx context.Context, ref sdk.Ref) (*sdk.Ended, error) {
	dir, err := s.find(ref.TaskID)
	if err != nil {
		return nil, err
	}
	process, err := detached.Wait(ctx, dir)
	if err == nil && process.Status == nil {
		err = sdk.NotStarted(ref.TaskID)
	}
	return &sdk.Ended{Status: process.Status, At: process.EndedAt}, err
}

// Shutdown asks the script to end, with SIGTERM, and kills it after the grace period.
func (s *shell) Shutdown(ctx context.Context, ref sdk.Ref, grace *time.Duration) (*sdk.Status, error) {
	if grace == nil {
		grace = new(10 * time.Second)
	}
	dir, err := s.find(ref.TaskID)
	if err != nil {
		return nil, err
	}
	process, err := detached.Stop(ctx, dir, *grace)
	return process.Status, err
}

// Terminate kills the script at once.
func (s *shell) Terminate(ctx context.Context, ref sdk.Ref) (*sdk.Status, error) {
	return s.Shutdown(ctx, ref, new(time.Duration))
}

// Remove kills the script if it runs, and forgets it.
func (s *shell) Remove(ctx context.Context, ref sdk.Ref) error {
	dir, err := s.find(ref.TaskID)
	if err != nil {
		return err
	}
	return detached.Remove(ctx, dir)
}

// List returns all tasks of a node, including those that no worker remembers.
func (s *shell) List(_ context.Context, node string) ([]sdk.Listed, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var listed []sdk.Listed
	for _, entry := range entries {
		of, task, _ := strings.Cut(entry.Name(), ".")
		if of != node {
			continue
		}
		process, err := detached.Look(filepath.Join(s.dir, entry.Name()))
		if err != nil {
			return nil, err
		}
		listed = append(listed, sdk.Listed{TaskID: task, State: process.State, Status: process.Status})
	}
	return listed, nil
}
