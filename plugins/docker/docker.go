// Package docker is an executor that runs containers through a Docker Engine.
//
// What it must remember of a task it leaves to the Engine: a task's container
// has the task's name, and labels that say whose it is. So the process may be
// killed at any time; the next one finds the containers by their labels. The one
// thing that the Engine cannot tell is that a creation is under way whose caller
// died, and for that alone there is a note on disk (intent.go).
//
// No type of the Engine's API leaves this package.
package docker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"
	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk"
)

// Kind is the runtime kind of containers.
const Kind = "container"

// The labels of a task's container.
const (
	labelPrefix      = "com.musterhq."
	labelTaskID      = labelPrefix + "task.id"
	labelTaskName    = labelPrefix + "task.name"
	labelNodeID      = labelPrefix + "node.id"
	labelServiceID   = labelPrefix + "service.id"
	labelServiceName = labelPrefix + "service.name"
	labelSlot        = labelPrefix + "slot"
	// Those by which Docker's tools know the tasks of swarm mode. The stack's is a label of
	// the spec: clients that deploy stacks set it.
	swarmPrefix      = "com.docker.swarm."
	swarmTask        = swarmPrefix + "task"
	swarmTaskID      = swarmPrefix + "task.id"
	swarmTaskName    = swarmPrefix + "task.name"
	swarmNodeID      = swarmPrefix + "node.id"
	swarmServiceID   = swarmPrefix + "service.id"
	swarmServiceName = swarmPrefix + "service.name"
	// labelPlaceholder is on a container that only takes a name (see settle).
	labelPlaceholder = labelPrefix + "placeholder"
)

// Config is what a docker executor is given.
type Config struct {
	// Version is reported as the executor's.
	Version string
	// StateDir keeps the notes of what is being created. It is made when it is
	// first needed.
	StateDir string
	// PoolSize is how many pause containers are kept ready for networked tasks. None are
	// made before the first of them, and none are kept when the last is gone.
	PoolSize int
	Logger   *zap.Logger
}

// Executor runs containers.
type Executor struct {
	config  Config
	engine  *client.Client
	intents intents
	log     *zap.Logger

	pool *pool

	// loading is held while the pause image is loaded.
	loading sync.Mutex

	mu         sync.Mutex
	negotiated bool
	pauses     *pauseImage
	// drivers are the volume drivers that the Engine named last.
	drivers []string
}

var (
	_ sdk.Executor    = (*Executor)(nil)
	_ sdk.LogStreamer = (*Executor)(nil)
	_ sdk.Statser     = (*Executor)(nil)
	_ sdk.Execer      = (*Executor)(nil)
	_ sdk.Observer    = (*Executor)(nil)
	_ sdk.Updater     = (*Executor)(nil)
	_ sdk.Signaler    = (*Executor)(nil)

	_ sdk.VolumeKeeper = (*Executor)(nil)

	_ sdk.NetworkProvider = (*Executor)(nil)
)

// New returns an executor that speaks with the Engine that DOCKER_HOST and its
// like name. It does not speak with it yet: an Engine that is away may come.
func New(config Config) (*Executor, error) {
	if config.StateDir == "" {
		return nil, errors.New("a docker executor needs a state directory")
	}
	if config.Logger == nil {
		config.Logger = zap.NewNop()
	}
	engine, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, fmt.Errorf("configure the client of the Docker Engine: %w", err)
	}
	e := &Executor{config: config, engine: engine, intents: intents{dir: config.StateDir}, log: config.Logger}
	e.pool = newPool(e, config.PoolSize)
	return e, nil
}

// connect settles once on the API version that the Engine and its client share.
// The client would do so by itself with its first request, and not safely if
// there are several at once. Every call that uses the Engine begins with it.
func (e *Executor) connect(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.negotiated {
		return nil
	}
	// One call must not wait here without end and keep all others waiting.
	within, cancel := context.WithTimeout(ctx, describeTime)
	defer cancel()
	pong, err := e.engine.Ping(within)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return sdk.Temporary(fmt.Errorf("reach the Docker Engine at %s: %w", e.engine.DaemonHost(), err), awayRetry)
	}
	e.engine.NegotiateAPIVersionPing(pong)
	e.negotiated = true
	return nil
}

// Close removes the pause containers of the pool and closes the connections to the Engine.
func (e *Executor) Close() error {
	e.pool.close()
	return e.engine.Close()
}

// describeTime bounds the questions of Describe, which has 10 s itself.
const describeTime = 5 * time.Second

// Describe implements [sdk.Executor].
func (e *Executor) Describe(ctx context.Context) (*sdk.Description, error) {
	description := &sdk.Description{Name: "docker", Version: e.config.Version, Kinds: []string{Kind}, TaskFiles: true}
	for _, field := range honoured {
		description.Capabilities = append(description.Capabilities, "container."+field)
	}
	ctx, cancel := context.WithTimeout(ctx, describeTime)
	defer cancel()
	if err := e.connect(ctx); err != nil {
		description.Message = fmt.Sprintf("no Docker Engine answers: %v", err)
		return description, nil
	}
	version, err := e.engine.ServerVersion(ctx)
	if err != nil {
		description.Message = fmt.Sprintf("the Docker Engine at %s does not answer: %v", e.engine.DaemonHost(), err)
		return description, nil
	}
	description.Healthy = true
	description.Message = fmt.Sprintf("Docker Engine %s (API %s)", version.Version, e.engine.ClientVersion())
	description.VolumeDrivers = e.volumeDrivers(ctx)
	description.Platform = &musterv1.Platform{Os: version.Os, Architecture: version.Arch}
	if _, err := newPauseImage(version.Os, version.Arch); err != nil {
		description.Message += "; tasks cannot be attached to networks or have a group: " + err.Error()
	} else {
		description.TaskGroups = true
		description.Capabilities = append(description.Capabilities, sdk.ProvidesNetwork)
	}
	return description, nil
}

// handleVersion is the version of the form of handle.
const handleVersion = 1

// handle is what the worker is asked to keep.
type handle struct {
	ContainerID string `json:"containerId"`
	// Namespace is the path of the network namespace of a networked task.
	Namespace string `json:"namespace,omitempty"`
}

// newHandle returns the handle of a container. The pause container is nil if it joins none.
func newHandle(containerID string, held *container.InspectResponse) (sdk.Handle, error) {
	h := handle{ContainerID: containerID}
	if held != nil {
		h.Namespace = namespaceOf(held)
	}
	return sdk.NewHandle(handleVersion, h)
}

// find returns a task's container, or NotFound.
func (e *Executor) find(ctx context.Context, taskID string, known sdk.Handle) (*container.InspectResponse, error) {
	if err := e.connect(ctx); err != nil {
		return nil, err
	}
	var remembered handle
	if known.Read(handleVersion, &remembered) && remembered.ContainerID != "" {
		found, err := e.inspect(ctx, remembered.ContainerID)
		if err == nil && found.Config.Labels[labelTaskID] == taskID {
			return found, nil
		}
		if err != nil && !isNotFound(err) {
			return nil, err
		}
	}
	listed, err := e.engine.ContainerList(ctx, container.ListOptions{
		All: true, Filters: filters.NewArgs(filters.Arg("label", labelTaskID+"="+taskID)),
	})
	if err != nil {
		return nil, engineError(fmt.Errorf("look for the task's container: %w", err))
	}
	if len(listed) == 0 {
		return nil, sdk.NotFound(taskID)
	}
	found, err := e.inspect(ctx, listed[0].ID)
	if isNotFound(err) {
		return nil, sdk.NotFound(taskID)
	}
	return found, err
}

// inspect returns a container by its id or name.
func (e *Executor) inspect(ctx context.Context, id string) (*container.InspectResponse, error) {
	found, err := e.engine.ContainerInspect(ctx, id)
	if err != nil {
		return nil, engineError(fmt.Errorf("inspect the container: %w", err))
	}
	if found.ContainerJSONBase == nil || found.Config == nil || found.State == nil {
		return nil, sdk.Temporary(errors.New("inspect the container: the Engine's answer lacks its state"), 0)
	}
	return &found, nil
}

// List implements [sdk.Executor].
func (e *Executor) List(ctx context.Context, nodeID string) ([]sdk.Listed, error) {
	args := filters.NewArgs(filters.Arg("label", labelTaskID))
	if nodeID != "" {
		args.Add("label", labelNodeID+"="+nodeID)
	}
	if err := e.connect(ctx); err != nil {
		return nil, err
	}
	// Notes first: one whose container has come meanwhile is then seen twice,
	// and not missed.
	notes, err := e.intents.list()
	if err != nil {
		return nil, err
	}
	containers, err := e.engine.ContainerList(ctx, container.ListOptions{All: true, Filters: args})
	if err != nil {
		return nil, engineError(fmt.Errorf("list the containers: %w", err))
	}
	var all []sdk.Listed
	known := map[string]bool{}
	for _, summary := range containers {
		listed, err := e.look(ctx, summary)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		known[listed.TaskID] = true
		all = append(all, listed)
	}
	pauses, err := e.listPauses(ctx, nodeID)
	if err != nil {
		return nil, err
	}
	for _, summary := range pauses {
		id := pauseTask(summary)
		if id != "" && !known[id] {
			known[id] = true
			all = append(all, sdk.Listed{TaskID: id, State: sdk.Prepared})
		}
		if poolName(summary) != "" && e.pool.open(ctx, summary.Labels[labelNodeID]) {
			e.pool.released(ctx, summary.Labels[labelNodeID])
		}
	}
	for _, note := range notes {
		// An unfinished note does not say its node. A state directory is that of one node.
		if !known[note.TaskID] && (nodeID == "" || note.NodeID == "" || note.NodeID == nodeID) {
			known[note.TaskID] = true
			all = append(all, sdk.Listed{TaskID: note.TaskID, State: sdk.Prepared})
		}
	}
	return all, nil
}

// look says how far a listed container has come.
func (e *Executor) look(ctx context.Context, summary container.Summary) (sdk.Listed, error) {
	// The summary says neither the process id nor the exit code.
	found, err := e.inspect(ctx, summary.ID)
	if err != nil {
		return sdk.Listed{}, err
	}
	held, err := e.joined(ctx, found)
	if err != nil {
		return sdk.Listed{}, err
	}
	listed := sdk.Listed{TaskID: summary.Labels[labelTaskID]}
	if held != nil {
		listed.Namespace = namespaceOf(held)
	}
	if listed.Handle, err = newHandle(summary.ID, held); err != nil {
		return sdk.Listed{}, err
	}
	switch {
	case !started(found):
		listed.State = sdk.Prepared
	case alive(found):
		listed.State, listed.Status = sdk.Running, status(found)
	default:
		listed.State, listed.Status = sdk.Exited, status(found)
	}
	return listed, nil
}

// started tells whether a container was ever started. The Engine writes the
// zero time for one that was not, and so also for one whose start failed; and for one
// that runs, if the Engine was killed while it started it and took it on afterwards.
func started(found *container.InspectResponse) bool {
	return alive(found) || !engineTime(found.State.StartedAt).IsZero()
}

// alive tells whether a container's process is there.
func alive(found *container.InspectResponse) bool {
	return found.State.Running || found.State.Restarting
}

// status says what there is to say of a container that was started.
func status(found *container.InspectResponse) *sdk.Status {
	if !started(found) {
		return nil
	}
	said := &sdk.Status{Id: found.ID, Pid: int64(found.State.Pid), Health: healthOf(found)}
	if !alive(found) {
		said.ExitCode, said.OomKilled = int32(found.State.ExitCode), found.State.OOMKilled
	}
	return said
}

// engineTime reads a time of the Engine's. It is zero if there is none.
func engineTime(text string) time.Time {
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}
	}
	return at
}

// ours tells whether a container was made for a task.
func ours(found *container.InspectResponse, taskID string) bool {
	return found.Config.Labels[labelTaskID] == taskID
}

// labels are those of a task's container.
func labels(task *sdk.Task) (map[string]string, error) {
	all := map[string]string{}
	for key, value := range task.GetSpec().GetContainer().GetLabels() {
		for prefix, owner := range map[string]string{labelPrefix: "Muster", swarmPrefix: "Docker"} {
			if strings.HasPrefix(key, prefix) {
				return nil, sdk.SpecFault("labels", fmt.Errorf("%q begins with %q, which is %s's own", key, prefix, owner))
			}
		}
		all[key] = value
	}
	all[labelTaskID] = task.GetId()
	all[labelTaskName] = task.GetName()
	all[labelNodeID] = task.GetNodeId()
	all[labelServiceID] = task.GetServiceId()
	all[labelServiceName] = task.GetServiceName()
	all[labelSlot] = fmt.Sprint(task.GetSlot())
	all[swarmTask] = ""
	all[swarmTaskID] = task.GetId()
	all[swarmTaskName] = task.GetName()
	all[swarmNodeID] = task.GetNodeId()
	all[swarmServiceID] = task.GetServiceId()
	all[swarmServiceName] = task.GetServiceName()
	return all, nil
}

// honoured are the fields of ContainerSpec that this executor acts on.
var honoured = slices.Clip([]string{
	"args", "capability_add", "capability_drop", "command", "dir", "dns_config", "env", "groups", "healthcheck", "hostname",
	"hosts", "image", "init", "labels", "mounts", "oom_score_adj", "open_stdin", "privileges", "pull_options", "read_only",
	"stop_grace_period", "stop_signal", "sysctls", "tty", "ulimits", "user",
})
