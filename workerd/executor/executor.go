// Package executor says in the worker's own terms what a worker asks of the executors
// of its node: one of them ([Executor]), and all of them ([Set]).
//
// There are two kinds of sets. The plugin host starts executors as processes;
// [NewFixed] holds executors of this process, for simulation and measurement. A
// package below adapts each version of the executor contract; no other package of
// the worker knows its messages.
package executor

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/workerd/internal/bounds"
)

// Executor runs tasks. All methods may be called at once for different tasks, and all
// may be called again. What they are given is shared and must not be changed.
// [ErrorOf] reads their errors.
type Executor interface {
	// Describe says what the executor is, and whether it can work now.
	Describe(ctx context.Context) (*About, error)
	// Prepare makes everything ready that Start needs.
	Prepare(ctx context.Context, task *Task, handle []byte) (*Prepared, error)
	// Start starts the task, and returns when it runs and, if it has a health check,
	// is healthy. The network is nil unless the task is networked.
	Start(ctx context.Context, task *Task, handle []byte, network *TaskNetwork) (*Started, error)
	// Wait returns when the task has ended, however.
	Wait(ctx context.Context, ref Ref) (*Ended, error)
	// Update tells of a task whose surroundings changed. Capability "update".
	Update(ctx context.Context, task *Task, handle []byte) ([]byte, error)
	// Shutdown asks the task to end, kills it after the grace period, and returns when
	// it has ended. Without a grace period, that of the task's spec counts. The status
	// may be nil.
	Shutdown(ctx context.Context, ref Ref, grace *time.Duration) (*musterv1.RuntimeStatus, error)
	// Terminate kills the task, and returns when it has ended. The status may be nil.
	Terminate(ctx context.Context, ref Ref) (*musterv1.RuntimeStatus, error)
	// Remove removes everything that is left of the task.
	Remove(ctx context.Context, ref Ref) error
	// Signal sends a signal to the main process of the task. Capability "signals".
	Signal(ctx context.Context, ref Ref, signal string) error
	// List returns all tasks of a node that the executor holds anything of.
	List(ctx context.Context, node string) ([]Listed, error)
	// Logs calls emit with each line, in order, until none are left or emit fails.
	// Capability "logs".
	Logs(ctx context.Context, ref Ref, options *musterv1.LogOptions, emit func(*LogLine) error) error
	// Observe calls emit with each change, in order, until nothing can be observed any
	// more or emit fails. Capability "observe".
	Observe(ctx context.Context, ref Ref, emit func(*Observation) error) error
}

// VolumeKeeper is an executor whose node has volumes with names. Capability "volumes".
type VolumeKeeper interface {
	// Volumes returns all volumes. MadeByTask is about tasks of the node.
	Volumes(ctx context.Context, node string) ([]*musterv1.NodeVolume, error)
	// RemoveVolume removes a volume that nothing uses, with its data.
	RemoveVolume(ctx context.Context, name string) error
}

// About is what an executor says of itself.
type About struct {
	Name, Version string
	Healthy       bool
	// Message says why the executor is not healthy, or what else there is to say.
	Message string
	// Kinds are the kinds of runtime that it runs, and Capabilities what it can do
	// beyond the least.
	Kinds, Capabilities []string
	// PayloadSchema is the JSON Schema of the payload of its generic runtime.
	PayloadSchema string
	// Resources are what it adds to the node's.
	Resources *musterv1.Resources
	// Platform is what its tasks see, if that is not the worker's.
	Platform *musterv1.Platform
	// TaskGroups is true if it runs the containers of task groups.
	TaskGroups bool
	// TaskFiles is true if it gives tasks their files, and Signals if it delivers signals.
	TaskFiles, Signals bool
	// VolumeDrivers are the names of the volume drivers that it has.
	VolumeDrivers []string
}

// Task is what an executor is told of a task.
type Task struct {
	ID string
	// Name is unique on the node.
	Name                   string
	ServiceID, ServiceName string
	// Slot is 0 for a task that has none.
	Slot          uint64
	NodeID        string
	ServiceLabels map[string]string
	Spec          *musterv1.TaskSpec
	// Ports are the host ports to publish.
	Ports []*musterv1.PortConfig
	// Networked is true if the task is attached to networks. The worker then connects
	// the task's network namespace between Prepare and Start, and publishes the ports.
	Networked bool
	// SharesNetworkOf is the id of the task whose network namespace this one shares, if it
	// is a container of a group.
	SharesNetworkOf string
	// Files are the files that the worker holds ready for the task, and GroupFiles those
	// of the containers of its group, by name.
	Files      []File
	GroupFiles map[string][]File
}

// File is a file that the worker holds ready for a task.
type File struct {
	// Source is its path on the node, and Target that in the task. Source ends with Target.
	Source, Target string
	UID, GID       uint32
	Mode           fs.FileMode
	// Secret says that the content must get into no image, log or disk.
	Secret bool
}

// Capabilities that a node reports of an executor because its worker can use them.
const (
	// RunsGroups is the capability of an executor that runs the containers of task groups.
	RunsGroups = "groups"
	// GivesFiles is the capability of an executor that gives tasks their files.
	GivesFiles = "files"
	// DeliversSignals is the capability of an executor that delivers signals.
	DeliversSignals = "signals"
	// KeepsVolumes is the capability of a [VolumeKeeper].
	KeepsVolumes = "volumes"
	// VolumeDriver begins the capability of an executor that has a volume driver.
	VolumeDriver = "volume."
)

// The capabilities of executors that run networked tasks.
const (
	// ProvidesNetwork is the capability of an executor that creates the network
	// namespace of a networked task in Prepare.
	ProvidesNetwork = "network.provides"
	// AcceptsNetwork is the capability of an executor that runs a networked task in a
	// namespace that Start names.
	AcceptsNetwork = "network.accepts"
)

// Prepared tells of a task that is ready to start.
type Prepared struct {
	// Handle is kept by the worker and passed to each later call.
	Handle []byte
	// Namespace is the path of the network namespace that the executor made for a
	// networked task. It is valid until the task is removed or the machine restarts.
	Namespace string
}

// TaskNetwork is the network of a networked task.
type TaskNetwork struct {
	// Namespace is the path of the network namespace.
	Namespace string
	// Nameservers, Search and Options are for the task's resolv.conf.
	Nameservers, Search, Options []string
	// Hosts are lines for the task's hosts file beside those for localhost:
	// "IP NAME...".
	Hosts []string
}

// Ref names a task that the executor holds.
type Ref struct {
	TaskID string
	Handle []byte
}

// Started tells of a task that runs.
type Started struct {
	Handle  []byte
	Runtime *musterv1.RuntimeStatus
	// Ports are the host ports that the task really holds.
	Ports []*musterv1.PortConfig
}

// Ended tells how a task ended.
type Ended struct {
	// Runtime may be nil.
	Runtime *musterv1.RuntimeStatus
	// At is zero if the executor does not know.
	At time.Time
	// Error says why the task counts as failed whatever its exit code, if it does.
	Error string
}

// State is how far a listed task has come.
type State int8

// The states of a listed task.
const (
	StateUnknown State = iota
	StatePrepared
	StateRunning
	StateEnded
)

// String returns the name of a state for logs.
func (s State) String() string { return [...]string{"unknown", "prepared", "running", "ended"}[s] }

// Listed is one task that an executor holds something of.
type Listed struct {
	Ref
	State   State
	Runtime *musterv1.RuntimeStatus
	// Namespace is as in [Prepared].
	Namespace string
}

// LogLine is one line of a task's output, without its end.
type LogLine struct {
	// Time is zero if the executor does not know.
	Time   time.Time
	Stream musterv1.LogStream
	Data   []byte
}

// Observation is the condition of a task at one moment.
type Observation struct {
	// Runtime is nil until the task is started.
	Runtime *musterv1.RuntimeStatus
	// Message says what Start waits for. It is empty if Start waits for nothing.
	Message string
	// Error says why Start takes longer than it should. It is empty if all is well.
	Error string
	// Containers are the containers of a task with a group.
	Containers []*musterv1.ContainerStatus
}

// Set is the executors of a node.
type Set interface {
	// For returns the executor that runs a kind of runtime: "container", or
	// that of a generic runtime. If holder is not empty, only the executor of that name
	// will do. Otherwise healthy ones come first. For waits for executors that are being looked
	// at for the first time. A temporary error
	// means that an executor for the kind may still turn up.
	For(ctx context.Context, kind, holder string) (*Described, error)
	// Describe asks all executors what they are, and returns when all have
	// answered or ctx has ended. Executors that do not work are in it too.
	Describe(ctx context.Context) []*Described
	// Changes receives when something of what Describe returns has changed.
	// There is one reader.
	Changes() <-chan struct{}
}

// Described is an executor with what it last said of itself. It is not changed
// once it has been handed out.
type Described struct {
	// Name is the executor's. It stays the same over restarts.
	Name string
	// Executor is nil if it cannot be called at all.
	Executor Executor
	// Description is what a node reports of it.
	Description *musterv1.ExecutorDescription
	// Resources are what it adds to the node's.
	Resources *musterv1.Resources
	// Excess says which limit of a report its own description exceeds. Nil: none.
	Excess error
	// Platform is what its tasks see, if that is not the worker's.
	Platform *musterv1.Platform

	// kinds and capabilities are not reported with an excess, and still hold for the
	// tasks that the executor has.
	kinds, capabilities []string
}

// Can says whether the executor has a capability.
func (d *Described) Can(capability string) bool {
	return slices.Contains(d.capabilities, capability)
}

// With returns the executor with another implementation, which has further capabilities.
func (d *Described) With(e Executor, capabilities ...string) *Described {
	next := *d
	next.Executor, next.capabilities = e, slices.Concat(d.capabilities, capabilities)
	return &next
}

// Healthy reports whether the executor said that it can work.
func (d *Described) Healthy() bool {
	return d.Description.GetHealth() == musterv1.ExecutorDescription_HEALTHY
}

// Runs says whether the executor runs a kind of runtime.
func (d *Described) Runs(kind string) bool {
	return slices.Contains(d.kinds, kind)
}

// NewDescribed returns an executor with what it said of itself. About is nil if it has
// not said anything yet. The description of an executor that exceeds a limit of a
// node's report is withheld.
func NewDescribed(e Executor, about *About) *Described {
	if about == nil {
		about = &About{}
	}
	health, capabilities := musterv1.ExecutorDescription_UNHEALTHY, about.Capabilities
	// That an executor can do this helps only on a node whose worker can, so the worker
	// says it.
	for capability, has := range map[string]bool{RunsGroups: about.TaskGroups, GivesFiles: about.TaskFiles, DeliversSignals: about.Signals} {
		if has {
			capabilities = append(slices.Clip(capabilities), capability)
		}
	}
	for _, driver := range about.VolumeDrivers {
		capabilities = append(slices.Clip(capabilities), VolumeDriver+driver)
	}
	slices.Sort(capabilities)
	if about.Healthy {
		health = musterv1.ExecutorDescription_HEALTHY
	}
	d := &Described{
		Name:     about.Name,
		Executor: e,
		Description: &musterv1.ExecutorDescription{
			Name:          bounds.Text(about.Name, nodereport.MaxName),
			Version:       bounds.Text(about.Version, nodereport.MaxName),
			Health:        health,
			Message:       bounds.Text(about.Message, nodereport.MaxExecutorMessage),
			Kinds:         about.Kinds,
			Capabilities:  capabilities,
			PayloadSchema: about.PayloadSchema,
		},
		Resources:    about.Resources,
		Platform:     about.Platform,
		kinds:        about.Kinds,
		capabilities: capabilities,
	}
	if d.Excess = excess(d); d.Excess != nil {
		d.Description, d.Resources = Withheld(d.Description, d.Excess), nil
	}
	return d
}

// excess returns an error that names the limit that an executor alone exceeds.
func excess(d *Described) error {
	if n := len(d.Description.PayloadSchema); n > nodereport.MaxSchema {
		return fmt.Errorf("payload schema has %d bytes; at most %d are allowed", n, nodereport.MaxSchema)
	}
	if err := nodereport.CheckExecutor(d.Description); err != nil {
		return err
	}
	return nodereport.CheckGenericResources("resources.generic", d.Resources.GetGeneric())
}

// Withheld returns what a node reports of an executor instead of a description that
// exceeds a limit: that it is unhealthy, and why. A dispatcher would refuse the whole
// node.
func Withheld(d *musterv1.ExecutorDescription, why error) *musterv1.ExecutorDescription {
	return &musterv1.ExecutorDescription{
		Name: d.Name, Version: d.Version, Checksum: d.Checksum,
		Health:  musterv1.ExecutorDescription_UNHEALTHY,
		Message: bounds.Text(why.Error(), nodereport.MaxExecutorMessage),
	}
}

// KindOf returns the kind of runtime that a task needs.
func KindOf(spec *musterv1.TaskSpec) string {
	if generic := spec.GetGeneric(); generic != nil {
		return generic.GetKind()
	}
	return "container"
}
