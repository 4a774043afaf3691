package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"go.uber.org/zap"

	"github.com/musterhq/muster/plugins/docker/internal/pause"
	"github.com/musterhq/muster/plugins/sdk"
)

// A networked task has two containers: its own, and a pause container that holds the
// network namespace, which the other joins. The pause container is there before, so that
// the worker can connect the namespace before anything runs in it. The main container of a
// group has a pause container too, which the other containers of the group join; if the
// group is not networked, the Engine connects it, and it publishes the ports.
//
// The pause container of a task is found by its name, which it gets when it is made or
// taken from the pool: names, unlike labels, can be changed, and the Engine gives one name
// once only.
const (
	// labelPause is on pause containers.
	labelPause = labelPrefix + "pause"
	// pausePrefix is what the names of the pause containers of tasks begin with.
	pausePrefix = "muster-pause-"
)

func pauseName(taskID string) string { return pausePrefix + taskID }

// pauseConfig returns what the Engine is told of a pause container.
func pauseConfig(imageName, nodeID, hostname string) (*container.Config, *container.HostConfig) {
	return &container.Config{
			Image: imageName, Entrypoint: []string{pause.Path}, Hostname: hostname, OpenStdin: true,
			// The first process of a container ignores all other signals.
			StopSignal: "SIGKILL",
			Labels:     map[string]string{labelPause: "true", labelNodeID: nodeID},
		}, &container.HostConfig{
			NetworkMode: container.NetworkMode("none"), IpcMode: container.IPCModeNone, Init: new(bool),
			LogConfig: container.LogConfig{Type: "none"}, CapDrop: []string{"ALL"}, SecurityOpt: []string{"no-new-privileges"},
		}
}

// pauseImage is the image of pause containers for one Engine.
type pauseImage struct {
	name  string
	files []byte
}

// newPauseImage returns the image for the architecture of an Engine.
func newPauseImage(system, architecture string) (*pauseImage, error) {
	program := pause.Program(architecture)
	if system != "linux" || program == nil {
		return nil, fmt.Errorf("there is no pause program for %s/%s", system, architecture)
	}
	name, files, err := pause.Image(program)
	if err != nil {
		return nil, err
	}
	return &pauseImage{name: name, files: files}, nil
}

// pauseImage returns the image of pause containers. Whether the Engine has it shows when it
// is used.
func (e *Executor) pauseImage(ctx context.Context) (*pauseImage, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pauses == nil {
		version, err := e.engine.ServerVersion(ctx)
		if err != nil {
			return nil, engineError(fmt.Errorf("ask the Docker Engine for its architecture: %w", err))
		}
		if e.pauses, err = newPauseImage(version.Os, version.Arch); err != nil {
			return nil, sdk.NodeFault(err)
		}
	}
	return e.pauses, nil
}

// load gives the Engine the image.
func (e *Executor) load(ctx context.Context, i *pauseImage) error {
	e.loading.Lock()
	defer e.loading.Unlock()
	if there, err := e.hasImage(ctx, i.name); there || err != nil {
		return err
	}
	progress, err := e.engine.ImageImport(ctx, image.ImportSource{Source: bytes.NewReader(i.files), SourceName: "-"}, i.name, image.ImportOptions{})
	if err != nil {
		return engineError(fmt.Errorf("load the pause image: %w", err))
	}
	if err := errors.Join(readProgress(progress), progress.Close()); err != nil {
		return engineError(fmt.Errorf("load the pause image: %w", err))
	}
	return nil
}

// createPause creates and starts a pause container. The adapt function, if any, changes
// what the Engine is told of it.
func (e *Executor) createPause(ctx context.Context, name, nodeID, hostname string, adapt func(*container.Config, *container.HostConfig)) (string, error) {
	i, err := e.pauseImage(ctx)
	if err != nil {
		return "", err
	}
	config, host := pauseConfig(i.name, nodeID, hostname)
	if adapt != nil {
		adapt(config, host)
	}
	created, err := e.engine.ContainerCreate(ctx, config, host, nil, nil, name)
	if isNotFound(err) {
		// The image was never loaded, or was removed since.
		if err := e.load(ctx, i); err != nil {
			return "", err
		}
		created, err = e.engine.ContainerCreate(ctx, config, host, nil, nil, name)
	}
	if err != nil {
		return "", pauseError("create", err)
	}
	return created.ID, e.startPause(ctx, created.ID)
}

// startPause starts a pause container, or one that runs.
func (e *Executor) startPause(ctx context.Context, id string) error {
	if err := e.engine.ContainerStart(ctx, id, container.StartOptions{}); err != nil {
		return pauseError("start", err)
	}
	return nil
}

// pauseError returns the error of a call about a pause container. No task's spec is at
// fault.
func pauseError(call string, err error) error {
	err = fmt.Errorf("%s the pause container: %w", call, err)
	if isInvalid(err) || isUnable(err) || isInternal(err) {
		return sdk.NodeFault(err)
	}
	return engineError(err)
}

// errForeign means that a container has the name of a task's pause container and is none.
var errForeign = errors.New("there is a container on this node that has the name of a pause container and is not Muster's: rename or remove it")

// findPause returns the pause container of a task, or NotFound.
func (e *Executor) findPause(ctx context.Context, taskID string) (*container.InspectResponse, error) {
	found, err := e.inspect(ctx, pauseName(taskID))
	if err != nil {
		return nil, gone(taskID, err)
	}
	if found.Config.Labels[labelPause] == "" {
		return nil, sdk.NodeFault(fmt.Errorf("%w: %s", errForeign, pauseName(taskID)))
	}
	return found, nil
}

// provides reports whether a task has a pause container.
func provides(task *sdk.Task, host *container.HostConfig) bool {
	return task.GetSharesNetworkOf() == "" && !host.NetworkMode.IsHost() && (task.GetNetworked() || len(task.GetSpec().GetGroup()) > 0)
}

// shares reports whether a task joins the pause container of another.
func shares(task *sdk.Task, host *container.HostConfig) bool {
	return task.GetSharesNetworkOf() != "" && !host.NetworkMode.IsHost()
}

// sharedPause returns the pause container that a container of a group joins.
func (e *Executor) sharedPause(ctx context.Context, task *sdk.Task) (*container.InspectResponse, error) {
	found, err := e.findPause(ctx, task.GetSharesNetworkOf())
	if err != nil && !isNotFound(err) {
		return nil, err
	}
	if err != nil || !alive(found) {
		return nil, sdk.Failed(errNamespaceGone)
	}
	return found, nil
}

// connected returns how the pause container of a group that is not networked differs from
// others: the Engine connects it as it would the main container.
func connected(task *sdk.Task, main *container.Config, mainHost *container.HostConfig) func(*container.Config, *container.HostConfig) {
	if task.GetNetworked() {
		return nil
	}
	return func(config *container.Config, host *container.HostConfig) {
		config.ExposedPorts = main.ExposedPorts
		host.NetworkMode, host.PortBindings = mainHost.NetworkMode, mainHost.PortBindings
		host.DNS, host.DNSSearch, host.DNSOptions, host.ExtraHosts = mainHost.DNS, mainHost.DNSSearch, mainHost.DNSOptions, mainHost.ExtraHosts
	}
}

// providePause returns the pause container of a task, which runs. The task has no other
// container yet.
func (e *Executor) providePause(ctx context.Context, task *sdk.Task, main *container.Config, mainHost *container.HostConfig) (*container.InspectResponse, error) {
	name, hostname, adapt := pauseName(task.GetId()), task.GetSpec().GetContainer().GetHostname(), connected(task, main, mainHost)
	return poll(ctx, func() (*container.InspectResponse, error) {
		for {
			found, err := e.findPause(ctx, task.GetId())
			if err == nil && usable(found) {
				if alive(found) {
					return found, nil
				}
				err = e.startPause(ctx, found.ID)
			} else if err == nil {
				err = e.remove(ctx, found.ID)
			} else if isNotFound(err) {
				err = nil
				if hostname != "" || adapt != nil || !e.pool.take(ctx, task.GetNodeId(), name) {
					_, err = e.createPause(ctx, name, task.GetNodeId(), hostname, adapt)
				}
			}
			if isConflict(err) {
				// A call whose caller has died is at work on it.
				return nil, errPending
			}
			if isInternal(err) && adapt != nil {
				if taken := e.taken(ctx, "", task.GetPorts()); taken != nil {
					err = sdk.NodeFault(taken)
				}
			}
			if err != nil {
				return nil, err
			}
		}
	})
}

// usable reports whether a pause container runs or can be started: nothing was attached to
// the namespace of one that never ran.
func usable(found *container.InspectResponse) bool {
	return found.Config.Labels[labelPlaceholder] == "" && (alive(found) || !started(found))
}

// removePause removes the pause container of a task, if it has one.
func (e *Executor) removePause(ctx context.Context, taskID string) error {
	found, err := e.findPause(ctx, taskID)
	if isNotFound(err) || errors.Is(err, errForeign) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := e.remove(ctx, found.ID); err != nil {
		return err
	}
	e.pool.released(ctx, found.Config.Labels[labelNodeID])
	return nil
}

// joins reports whether a container is in the network namespace of another.
func joins(found *container.InspectResponse) bool {
	return found.HostConfig != nil && found.HostConfig.NetworkMode.IsContainer()
}

// joined returns the container whose network namespace a container joins; nil if it joins
// none, or that is gone.
func (e *Executor) joined(ctx context.Context, found *container.InspectResponse) (*container.InspectResponse, error) {
	if !joins(found) {
		return nil, nil
	}
	held, err := e.inspect(ctx, found.HostConfig.NetworkMode.ConnectedContainer())
	if isNotFound(err) {
		return nil, nil
	}
	return held, err
}

// guard kills a container when its pause container ends, until the returned function is
// called.
func (e *Executor) guard(ctx context.Context, found *container.InspectResponse) (stop func()) {
	if !joins(found) {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		if err := e.stopped(ctx, found.HostConfig.NetworkMode.ConnectedContainer()); err != nil && !isNotFound(err) {
			return
		}
		if err := e.kill(ctx, found.ID); err != nil && ctx.Err() == nil {
			e.log.Warn("failed to kill container without its network namespace", zap.String("container", found.ID), zap.Error(err))
		}
	})
	return func() {
		cancel()
		watching.Wait()
	}
}

// orphaned reports whether a container that has ended had lost its pause container before.
func (e *Executor) orphaned(ctx context.Context, found *container.InspectResponse) (bool, error) {
	held, err := e.joined(ctx, found)
	if !joins(found) || err != nil || held == nil {
		return joins(found) && err == nil, err
	}
	return !alive(held) && engineTime(held.State.FinishedAt).Before(engineTime(found.State.FinishedAt)), nil
}

// listPauses returns the pause containers of a node, or of all nodes if it is empty.
func (e *Executor) listPauses(ctx context.Context, nodeID string) ([]container.Summary, error) {
	args := filters.NewArgs(filters.Arg("label", labelPause))
	if nodeID != "" {
		args.Add("label", labelNodeID+"="+nodeID)
	}
	found, err := e.engine.ContainerList(ctx, container.ListOptions{All: true, Filters: args})
	if err != nil {
		return nil, engineError(fmt.Errorf("list the pause containers: %w", err))
	}
	return found, nil
}

// pauseTask returns the id of the task that a pause container belongs to; "" if it
// belongs to none.
func pauseTask(summary container.Summary) string {
	for _, name := range summary.Names {
		if id, ok := strings.CutPrefix(name, "/"+pausePrefix); ok {
			return id
		}
	}
	return ""
}
