// Package sdk is the library for authors of executors. An executor runs the tasks of one
// kind of runtime for a worker of Muster. It is a program of its own, whose main is
//
//	func main() { sdk.Serve(myexecutor.New()) }
//
// where New returns an [Executor]. An executor has more abilities if it implements further
// interfaces: [Updater], [LogStreamer], [Statser], [Execer], [Observer], [Signaler],
// [VolumeKeeper].
// [Networker] and [NetworkProvider] are for tasks that are attached to networks. Whether
// they work depends on the machine, so Describe states them. The same holds for containers
// of task groups ([Task].SharesNetworkOf, [Description].TaskGroups), and for files that the
// worker provides ([Task].Files, [Description].TaskFiles).
//
// # What an executor must know
//
// A task's calls are Prepare, Start, Wait, Remove; Shutdown or Terminate end it sooner.
// Calls for one task come one at a time, except Wait, Observe, Logs, Stats and Exec, which
// may be open beside any other. Calls for different tasks are concurrent.
//
// The executor's process may be killed and started again at any time, and so may the
// worker. Tasks keep running. So every call may be repeated, and a repeated call succeeds
// and changes nothing. List of a new process must find a task before anything of it is
// started, and its exit code must still be known then. State of a task is returned as a
// [Handle], which comes back with each later call. A call may come with an empty or an
// older handle: then the executor must find the task by its id.
//
// Errors say what to do: [Temporary], [NodeFault], [SpecFault], [NotFound]. Any other error
// fails the task if Prepare or Start returns it. From any other call it is temporary,
// because the task may still be running. For an unknown task all calls except Shutdown,
// Terminate and Remove return NotFound. If those return it too, that counts as success.
//
// A task of a generic runtime has a payload. [Decode] reads it into a struct, strictly.
// Package schema derives from the same struct the JSON Schema that Describe returns. Specs
// are checked against it when users submit them.
//
// An executor's standard error becomes the worker's log. Lines of JSON with the keys
// "@level" and "@message" keep their level and fields. `muster plugin test` tests whether
// an executor follows all of this.
package sdk

import (
	"context"
	"time"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Messages of the contract that are passed through unchanged.
type (
	// Task describes a task to an executor.
	Task = executorv1.Task
	// Description describes an executor, and says whether it can work now. Capabilities
	// that follow from the interfaces that the executor implements are added to it.
	Description = executorv1.DescribeResponse
	// Status is the status of a started task.
	Status = musterv1.RuntimeStatus
	// Port is a port that a task publishes.
	Port = musterv1.PortConfig
	// Network is the network of a networked task.
	Network = executorv1.TaskNetwork
	// Volume is a volume of the node.
	Volume = musterv1.NodeVolume
	// File is a file that the worker provides for a task.
	File = executorv1.TaskFile
)

// Executor runs tasks.
type Executor interface {
	// Describe returns what the executor is and whether it can work now. It is called about
	// every 20 s and must answer within 10 s.
	Describe(ctx context.Context) (*Description, error)
	// Prepare prepares everything that Start needs. It may take long.
	Prepare(ctx context.Context, task *Task, handle Handle) (Handle, error)
	// Start starts the task. It returns when the task runs and, if it has a
	// health check, is healthy.
	Start(ctx context.Context, task *Task, handle Handle) (*Started, error)
	// Wait returns when the task has ended for any reason. It may be cancelled and called
	// again.
	Wait(ctx context.Context, ref Ref) (*Ended, error)
	// Shutdown asks the task to end, gives it the grace period, then kills it.
	// A nil grace period means what the task's spec said, else [DefaultGracePeriod]. It
	// returns when the task has ended; the status is nil if it never started.
	Shutdown(ctx context.Context, ref Ref, grace *time.Duration) (*Status, error)
	// Terminate kills the task at once. It returns as Shutdown does.
	Terminate(ctx context.Context, ref Ref) (*Status, error)
	// Remove removes everything of the task, including its logs. It kills a task that still
	// runs.
	Remove(ctx context.Context, ref Ref) error
	// List returns all tasks of the node of which the executor holds anything.
	List(ctx context.Context, nodeID string) ([]Listed, error)
}

// Updater is an executor that wants to know when a task's surroundings change while its
// spec stays the same.
type Updater interface {
	Update(ctx context.Context, task *Task, handle Handle) (Handle, error)
}

// Signaler is an executor that can send a signal to a task's main process.
type Signaler interface {
	// Signal sends a signal, by a name such as "SIGHUP" or a number. It does not wait for
	// its effect.
	Signal(ctx context.Context, ref Ref, signal string) error
}

// VolumeKeeper is an executor whose node has volumes with names, which outlive tasks.
type VolumeKeeper interface {
	// Volumes returns all volumes that have names. MadeByTask is about tasks of the node.
	Volumes(ctx context.Context, nodeID string) ([]*Volume, error)
	// RemoveVolume removes a volume with its data. It returns [NoVolume] if there is none
	// of the name, and [VolumeInUse] if a task or anything else uses it.
	RemoveVolume(ctx context.Context, name string) error
}

// LogStreamer is an executor that keeps its tasks' output.
type LogStreamer interface {
	// Logs passes the lines to emit one by one, oldest first. It ends when there are no
	// more lines or, if it follows, when the task has ended. An error of emit ends it too.
	Logs(ctx context.Context, ref Ref, options LogOptions, emit func(LogLine) error) error
}

// Statser is an executor that can report what a task uses.
type Statser interface {
	Stats(ctx context.Context, ref Ref) (*Stats, error)
}

// Execer is an executor that can run a command beside a task's process.
type Execer interface {
	// Exec returns the command's exit code when it has ended.
	Exec(ctx context.Context, ref Ref, command Command, stdio ExecIO) (exitCode int32, err error)
}

// Observer is an executor that reports changes of a task while a call for it is open: what
// Start waits for, and the result of the health check.
type Observer interface {
	// Observe calls emit with the task's present condition, and again after each change. It
	// is called beside Start and beside Wait, and cancelled when they return. It returns
	// when the task has ended, and when there is nothing to observe. An error of emit ends
	// it too.
	Observe(ctx context.Context, ref Ref, emit func(Observation) error) error
}

// The capabilities of executors that run networked tasks. Describe returns one of them
// if the executor can do it on this machine.
const (
	// ProvidesNetwork means that Prepare creates the network namespace of a networked
	// task. The executor is a [NetworkProvider].
	ProvidesNetwork = "network.provides"
	// AcceptsNetwork means that a networked task runs in a namespace that the worker
	// names. The executor is a [Networker].
	AcceptsNetwork = "network.accepts"
)

// Networker is an executor that runs networked tasks ([Task].Networked). The worker
// connects a networked task's network namespace to its networks between Prepare and
// Start, and publishes its ports: the executor must not publish them.
type Networker interface {
	// SetNetwork is called before each Start of a networked task, also of one that
	// runs. It keeps the network for Start.
	SetNetwork(ctx context.Context, task *Task, handle Handle, network *Network) error
}

// NetworkProvider is an executor that creates the network namespaces of its networked
// tasks itself, in Prepare.
type NetworkProvider interface {
	Networker
	// Namespace returns the path of the network namespace of a networked task. It is
	// called after each Prepare. The path must stay valid until the task is removed or
	// the machine restarts, whatever happens to the executor and to the task's
	// processes. List returns it too.
	Namespace(ctx context.Context, ref Ref) (string, error)
}

// DefaultGracePeriod is how long a task has to end if neither Shutdown nor the task's
// payload sets it.
const DefaultGracePeriod = 10 * time.Second

// Ref names a task in calls after its start.
type Ref struct {
	TaskID string
	// Handle is what an earlier call returned. It may be empty or older.
	Handle Handle
}

// Started describes a running task.
type Started struct {
	Handle Handle
	Status *Status
	// Ports are the host ports that the task holds.
	Ports []*Port
}

// Health is the result of a task's health check, part of a [Status].
type Health = musterv1.Health

// The states of a health check.
const (
	HealthStarting  = musterv1.Health_STARTING
	HealthHealthy   = musterv1.Health_HEALTHY
	HealthUnhealthy = musterv1.Health_UNHEALTHY
)

// Observation is a task's condition at one moment.
type Observation struct {
	// Status is nil until the task is started.
	Status *Status
	// Message names what Start waits for.
	Message string
	// Error says why Start takes longer than it should. It is empty if nothing is wrong.
	Error string
}

// Ended describes how a task ended.
type Ended struct {
	// Status holds the exit code: 0 is success, 128+n is signal n.
	Status *Status
	At     time.Time
	// Error, if not empty, says why the task counts as failed whatever its exit code is,
	// such as "unhealthy".
	Error string
}

// State is the state of a listed task.
type State = executorv1.ListedTask_State

// The states of a listed task.
const (
	Prepared = executorv1.ListedTask_PREPARED
	Running  = executorv1.ListedTask_RUNNING
	Exited   = executorv1.ListedTask_ENDED
)

// Listed is a task of which an executor holds something.
type Listed struct {
	TaskID string
	State  State
	Handle Handle
	// Status is nil for a task that has not been started.
	Status *Status
	// Namespace is the path of the network namespace that Prepare made for a networked
	// task.
	Namespace string
}

// Stream is an output of a task.
type Stream = musterv1.LogStream

// The outputs of a task.
const (
	Stdout = musterv1.LogStream_STDOUT
	Stderr = musterv1.LogStream_STDERR
)

// MaxLogLine is how many bytes of a line are kept.
const MaxLogLine = 16 << 10

// LogLine is one line of a task's output.
type LogLine struct {
	Time   time.Time
	Stream Stream
	// Data is the line without its end. At most MaxLogLine of it is sent.
	Data []byte
}

// LogOptions select lines.
type LogOptions struct {
	// Follow continues with lines as they are written.
	Follow bool
	// Tail is how many of the last lines to return; 0 means all.
	Tail int
	// Since is the earliest time; zero means any.
	Since time.Time
	// Streams are the streams to return; none means both.
	Streams []Stream
}

// Wants reports whether lines of a stream were asked for.
func (o LogOptions) Wants(stream Stream) bool {
	for _, wanted := range o.Streams {
		if wanted == stream {
			return true
		}
	}
	return len(o.Streams) == 0
}

// Stats is what a task uses now.
type Stats struct {
	At time.Time
	// CPU is the time used since the start.
	CPU         time.Duration
	MemoryBytes int64
	PIDs        int64
}
