package tasks

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/expand"
	"github.com/musterhq/muster/internal/taskspec"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/dependencies"
	"github.com/musterhq/muster/workerd/internal/files"
	"github.com/musterhq/muster/workerd/internal/groups"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
)

// The secrets and configs of a task lie in files before it is prepared, and until it has
// ended. A file is replaced when its secret or config gets other data; the executor shows
// it to the task (Update), and then the task gets the signals that it asks for. That a
// signal must be sent is noted before the file is replaced. So a worker that dies at any
// point sends it when it is started again, perhaps twice.

// Files keeps the files of tasks.
type Files interface {
	// Path returns the path of a file of a container.
	Path(container, target string) string
	Has(container, target string) bool
	Current(container string, f files.File) bool
	Write(container string, f files.File) error
	Remove(container string) error
	// Keep removes the files of all other containers.
	Keep(containers map[string]bool) error
	// Signals returns the signals that must be sent to a container.
	Signals(container string) ([]string, error)
	AddSignal(container, signal string) error
	ClearSignals(container string) error
}

// container is one container of a task that has files.
type container struct {
	// id is what the executor calls it, and name is that in the group.
	id, name string
	files    []taskspec.File
	env      []string
}

// containersOf returns the containers of a task that have files. The spec is expanded.
func containersOf(task string, spec *musterv1.TaskSpec) []container {
	var all []container
	add := func(name string, list []taskspec.File, env []string) {
		if len(list) > 0 {
			all = append(all, container{groups.ContainerID(task, name), name, list, env})
		}
	}
	add(groups.Main, taskspec.Files(spec), spec.GetContainer().GetEnv())
	for _, g := range spec.GetGroup() {
		add(g.GetName(), taskspec.ContainerFiles(g.GetContainer()), g.GetContainer().GetEnv())
	}
	return all
}

// expandContext returns what templates of a task can use.
func (t *task) expandContext(d *executor.Task, slot string) expand.Context {
	node := t.m.cfg.Node
	return expand.Context{
		Service: expand.Service{ID: d.ServiceID, Name: d.ServiceName, Labels: d.ServiceLabels},
		Node: expand.Node{
			ID: t.m.cfg.NodeID, Hostname: node.GetHostname(),
			Platform: expand.Platform{OS: node.GetPlatform().GetOs(), Architecture: node.GetPlatform().GetArchitecture()},
		},
		Task: expand.Task{ID: t.id, Name: d.Name, Slot: slot},
	}
}

// describeFiles adds to a description where the files of the task are.
func (t *task) describeFiles(d *executor.Task) {
	if t.m.cfg.Files == nil {
		return
	}
	for _, c := range containersOf(t.id, d.Spec) {
		list := make([]executor.File, len(c.files))
		for i, f := range c.files {
			list[i] = executor.File{
				Source: t.m.cfg.Files.Path(c.id, f.Target), Target: f.Target, UID: f.UID, GID: f.GID, Mode: f.Mode, Secret: f.Secret,
			}
		}
		if c.name == groups.Main {
			d.Files = list
			continue
		}
		if d.GroupFiles == nil {
			d.GroupFiles = map[string][]executor.File{}
		}
		d.GroupFiles[c.name] = list
	}
}

// refOf names the object that a file has the data of.
func refOf(f taskspec.File) dependencies.Ref {
	if f.Secret {
		return dependencies.SecretRef(f.ID)
	}
	return dependencies.ConfigRef(f.ID)
}

// errMissing says that the dispatcher has not sent a secret or config to this process of
// the worker.
var errMissing = errors.New("was not sent by the dispatcher yet")

// placeFiles writes the files of the task that are not there or have other data. Files
// that are there already need no data.
func (c *call) placeFiles(e *executor.Described) error {
	containers := containersOf(c.t.id, c.description.Spec)
	if len(containers) == 0 {
		return nil
	}
	if c.t.m.cfg.Files == nil || !e.Can(executor.GivesFiles) {
		return &executor.Error{
			Code: codes.FailedPrecondition, BlameNode: true, NotCalled: true,
			Err: fmt.Errorf("executor %s, or this worker, cannot give tasks secrets and configs", e.Name),
		}
	}
	for _, container := range containers {
		for _, f := range container.files {
			if err := c.placeFile(container, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// specError returns an error that only another spec mends.
func specError(err error) error {
	return &executor.Error{Code: codes.InvalidArgument, NotCalled: true, Err: err}
}

func (c *call) placeFile(in container, f taskspec.File) error {
	store := c.t.m.cfg.Files
	data, err := c.t.m.contentOf(c.t.id, in, f, c.context)
	switch {
	case errors.Is(err, errMissing) && store.Has(in.id, f.Target):
		// A worker that was started again: what there is stays until there is more.
		return nil
	case errors.Is(err, errMissing):
		return &executor.Error{Temporary: true, NotCalled: true, Err: err}
	case err != nil:
		return specError(err)
	}
	file := files.File{Target: f.Target, Data: data, UID: f.UID, GID: f.GID, Mode: f.Mode}
	if store.Current(in.id, file) {
		return nil
	}
	if f.Signal != "" && store.Has(in.id, f.Target) && c.action == actUpdate {
		err = store.AddSignal(in.id, f.Signal)
	}
	if err == nil {
		err = store.Write(in.id, file)
	}
	if err != nil {
		return &executor.Error{Temporary: true, BlameNode: true, NotCalled: true, Err: err}
	}
	return nil
}

// nameError says that a template uses what its task does not have.
type nameError struct{ text string }

func (e *nameError) Error() string { return e.text }

// contentOf returns the data of a file, expanded if it is a template. A template can only
// use what its own container refers to. Errors become the error of the task, which is stored
// and shown: they hold nothing of the data of a secret.
func (m *Manager) contentOf(task string, in container, f taskspec.File, about expand.Context) ([]byte, error) {
	ref := refOf(f)
	object := m.objects.Data(ref, task)
	if object == nil {
		return nil, fmt.Errorf("%s %w", ref, errMissing)
	}
	if object.GetTemplating() == "" {
		return object.GetData(), nil
	}
	lacks := func(what, name string) error {
		// A name that is not written in the config may be the data of a secret.
		if f.Secret || !bytes.Contains(object.GetData(), []byte(name)) {
			return &nameError{"the task has no " + what + " with a name that it uses"}
		}
		return &nameError{fmt.Sprintf("the task has no %s %q", what, name)}
	}
	other := func(secret bool, what string) func(string) (string, error) {
		return func(name string) (string, error) {
			for _, f := range in.files {
				if f.Secret != secret || f.Given != name && f.Target != name && f.Name != name {
					continue
				}
				object := m.objects.Data(refOf(f), task)
				if object == nil {
					return "", fmt.Errorf("%s %w", refOf(f), errMissing)
				}
				return string(object.GetData()), nil
			}
			return "", lacks(what, name)
		}
	}
	data, secret, err := expand.File(object.GetData(), about, expand.Sources{
		Secret: other(true, "secret"), Config: other(false, "config"),
		Env: func(name string) (string, error) {
			for _, variable := range in.env {
				if key, value, _ := strings.Cut(variable, "="); key == name {
					return value, nil
				}
			}
			return "", lacks("variable", name)
		},
	})
	var lacking *nameError
	switch {
	case err == nil:
		return data, nil
	case errors.As(err, &lacking):
		err = lacking
	case (f.Secret || secret) && !errors.Is(err, errMissing):
		return nil, fmt.Errorf("template in %s cannot be expanded", ref)
	}
	return nil, fmt.Errorf("template in %s: %w", ref, err)
}

// sendSignals sends the containers of the task the signals that they must get because files
// were replaced.
func (c *call) sendSignals(e *executor.Described) error {
	for _, container := range containersOf(c.t.id, c.description.Spec) {
		signals, err := c.t.m.cfg.Files.Signals(container.id)
		if err != nil || len(signals) == 0 {
			c.t.m.logFiles(c.t.id, err)
			continue
		}
		for _, signal := range signals {
			if !e.Can(executor.DeliversSignals) {
				break
			}
			err := e.Executor.Signal(c.ctx, executor.Ref{TaskID: container.id, Handle: c.known.handle}, signal)
			if err != nil && executor.ErrorOf(err).Temporary {
				return err
			}
			if err != nil {
				// The container has ended, or its executor knows no such signal.
				c.t.m.log.Warn("failed to signal a task whose files were replaced",
					zap.String("task", c.t.id), zap.String("container", container.name), zap.String("signal", signal), zap.Error(err))
			}
		}
		c.t.m.logFiles(c.t.id, c.t.m.cfg.Files.ClearSignals(container.id))
	}
	return nil
}

// forgetSignals drops the signals for a task that starts, which sees its files as they are.
func (c *call) forgetSignals() {
	for _, container := range containersOf(c.t.id, c.description.Spec) {
		c.t.m.logFiles(c.t.id, c.t.m.cfg.Files.ClearSignals(container.id))
	}
}

func (m *Manager) logFiles(task string, err error) {
	if err != nil {
		m.log.Warn("failed to keep the files of a task", zap.String("task", task), zap.Error(err))
	}
}

// filesChanged is the event that a secret or config of the task has other data.
type filesChanged struct{}

func (filesChanged) apply(t *task) {
	// What is under way may not have seen it.
	t.description = nil
	if t.phase == phaseHeld && !lifecycle.Ended(t.state()) {
		t.phase = phaseOutdated
	}
	if t.pauses != nil && (t.last == actPrepare || t.last == actStart) {
		// It may be what the task waits for.
		t.pauses.retryAt = time.Time{}
	}
}

// dropFiles removes the files of a task that has ended, and releases its secrets and configs.
func (t *task) dropFiles() {
	if t.filesDropped || t.spec == nil {
		return
	}
	t.filesDropped = true
	if t.m.cfg.Files != nil {
		for _, c := range containersOf(t.id, t.spec) {
			t.m.logFiles(t.id, t.m.cfg.Files.Remove(c.id))
		}
	}
	t.m.releaseFiles(t)
}

// releaseFiles releases the secrets and configs that a task holds.
func (m *Manager) releaseFiles(t *task) {
	m.mu.Lock()
	var released, kept []dependencies.Ref
	for _, ref := range t.refs {
		if ref.IsFile() {
			released = append(released, ref)
		} else {
			kept = append(kept, ref)
		}
	}
	t.refs = kept
	m.mu.Unlock()
	m.objects.Release(released)
}

// holdFiles makes a task that is assigned again hold the secrets and configs that it lacks
// because this worker was started again. It reports whether there were any. The caller
// holds m.mu.
func (m *Manager) holdFiles(t *task, refs []dependencies.Ref) (held bool) {
	if lifecycle.Ended(t.published.Load().status.State) {
		return false
	}
	for _, ref := range refs {
		if ref.IsFile() && !slices.Contains(t.refs, ref) && m.objects.Hold([]dependencies.Ref{ref}) == nil {
			t.refs, held = append(t.refs, ref), true
		}
	}
	return held
}

// filesChanged tells the tasks that refer to secrets and configs that have other data.
func (m *Manager) filesChanged(refs []dependencies.Ref) {
	if len(refs) == 0 {
		return
	}
	var tasks []*task
	m.mu.Lock()
	for _, t := range m.tasks {
		if slices.ContainsFunc(refs, func(ref dependencies.Ref) bool { return slices.Contains(t.refs, ref) }) {
			tasks = append(tasks, t)
		}
	}
	m.mu.Unlock()
	for _, t := range tasks {
		t.post(filesChanged{})
	}
}

// keepFiles removes the files of tasks that this worker does not have.
func (m *Manager) keepFiles() {
	if m.cfg.Files == nil {
		return
	}
	kept := map[string]bool{}
	for id, t := range m.tasks {
		if lifecycle.Ended(t.state()) {
			continue
		}
		kept[id] = true
		for _, container := range groups.ContainerIDs(id, t.spec) {
			kept[container] = true
		}
	}
	if err := m.cfg.Files.Keep(kept); err != nil {
		m.log.Warn("failed to remove the files of earlier tasks", zap.Error(err))
	}
}
