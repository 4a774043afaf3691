// Package sdk is what the author of an executor imports. An executor runs the
// tasks of one kind of runtime for a worker of Muster; it is a program of its
// own, whose main is
//
//	func main() { sdk.Serve(myexecutor.New()) }
//
// where New returns an [Executor]. More abilities are further interfaces, and
// to implement one is to have it: [Updater], [LogStreamer], [Statser], [Execer],
// [Observer], [Signaler]. [Networker] and [NetworkProvider] are for tasks that are attached to
// networks; whether they work depends on the machine, so Describe states them. The same
// holds for containers of task groups ([Task].SharesNetworkOf, [Description].TaskGroups),
// and for files that the worker holds ready ([Task].Files, [Description].TaskFiles).
//
// # What an executor must know
//
// The life of a task is Prepare, Start, Wait, Remove; Shutdown or Terminate end
// it sooner. Calls for one task come one at a time, except Wait, Observe, Logs,
// Stats and Exec, which may be open beside any other; calls for different tasks
// come at once.
//
// The executor's process may be killed and started again at any time, and so
// may the worker. Tasks run on meanwhile. So every call may be repeated, and a
// repeated call is a success that changes nothing; before anything is started,
// List of a new process must be able to find it; and a task's exit code must
// still be known then. What has to be remembered of a task is returned as a
// [Handle], which comes back with each later call. A call may come with an
// empty or an older handle: then the task's id must do.
//
// Errors say what to do: [Temporary], [NodeFault], [SpecFault], [NotFound]. Any
// other error fails the task if it comes from Prepare or Start, and is
// temporary if it comes from any other call, for what runs may be running
// still. For a task that is not known, all but Shutdown, Terminate and Remove
// return NotFound; if those return it too, that counts as success.
//
// A task of a generic runtime carries a payload. [Decode] reads it into a
// struct, strictly, and package schema beside this one derives from the same
// struct the JSON Schema that Describe returns, against which specs are checked
// when users submit them.
//
// What an executor writes to standard error becomes the worker's log; lines of
// JSON with the keys "@level" and "@message" keep their level and fields.
// `muster plugin test` tries whether an executor keeps all this.
package sdk

import (
	"context"
	"time"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// The contract's messages that pass through unchanged.
type (
	// Task is what an executor is told of a task.
	Task = executorv1.Task
	// Description says what an executor is, and whether it can work now.
	// Capabilities that follow from the interfaces that the executor
	// implements are added to it.
	Description = executorv1.DescribeResponse
	// Status is what an executor says of a task that it has started.
	Status = musterv1.RuntimeStatus
	// Port is a port that a task publishes.
	Port = musterv1.PortConfig
	// Network is the network of a networked task.
	Network = executorv1.TaskNetwork
	// File is a file that the worker holds ready for a task.
	File = executorv1.TaskFile
)

// Executor runs tasks.
type Executor interface {
	// Describe says what the executor is and whether it can work now. It is
	// called every 20 s or so and must answer within 10 s.
	Describe(ctx context.Context) (*Description, error)
	// Prepare makes everything ready that Start needs. It may take long.
	Prepare(ctx context.Context, task *Task, handle Handle) (Handle, error)
	// Start starts the task. It returns when the task runs and, if it has a
	// health check, is healthy.
	Start(ctx context.Context, task *Task, handle Handle) (*Started, error)
	// Wait returns when the task has ended, however. It is cancelled freely
	// and called again.
	Wait(ctx context.Context, ref Ref) (*Ended, error)
	// Shutdown asks the task to end, gives it the grace period, then kills it.
	// A nil grace period means what the task's spec said, else [DefaultGracePeriod]. It
	// returns when the task has ended; the status is nil if it never started.
	Shutdown(ctx context.Context, ref Ref, grace *time.Duration) (*Status, error)
	// Terminate kills the task at once. It returns as Shutdown does.
	Terminate(ctx context.Context, ref Ref) (*Status, error)
	// Remove removes everything that is left of the task, its logs too. A task
	// that still runs is killed.
	Remove(ctx context.Context, ref Ref) error
	// List returns all tasks of the node that the executor holds anything of.
	List(ctx context.Context, nodeID string) ([]Listed, error)
}

// Updater is an executor that wants to know when a task's surroundings change
// while its spec stays the same.
type Updater interface {
	Update(ctx context.Context, task *Task, handle Handle) (Handle, error)
}

// Signaler is an executor that can send a signal to a task's main process.
type Signaler interface {
	// Signal sends a signal, a name such as "SIGHUP" or a number. It does not wait for
	// what the process does then.
	Signal(ctx context.Context, ref Ref, signal string) error
}

// LogStreamer is an executor that keeps its tasks' output.
type LogStreamer interface {
	// Logs hands the lines to emit one by one, oldest first, and ends when
	// there are no others, or, if it follows, when the task has ended. An error
	// of emit ends it too.
	Logs(ctx context.Context, ref Ref, options LogOptions, emit func(LogLine) error) error
}

// Statser is an executor that can say what a task uses.
type Statser interface {
	Stats(ctx context.Context, ref Ref) (*Stats, error)
}

// Execer is an executor that can run a command beside a task's process.
type Execer interface {
	// Exec returns the command's exit code when it has ended.
	Exec(ctx context.Context, ref Ref, command Command, stdio ExecIO) (exitCode int32, err error)
}

// Observer is an executor that reports what changes about a task while a call
// for it is open: what Start waits for, and what the health check says.
type Observer interface {
	// Observe calls emit with the present condition of the task, and again after
	// each change. It is called beside Start and beside Wait, and cancelled when
	// they return. It returns when the task has ended, and when there is nothing
	// to observe. An error of emit ends it too.
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

// DefaultGracePeriod is how long a task has to end when neither Shutdown nor the
// task's payload says.
const DefaultGracePeriod = 10 * time.Second

// Ref names a task in the calls that follow its start.
type Ref struct {
	TaskID string
	// Handle is what an earlier call returned. It may be empty or older.
	Handle Handle
}

// Started tells of a task that runs.
type Started struct {
	Handle Handle
	Status *Status
	// Ports are the host ports that the task really holds.
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

// Observation is the condition of a task at one moment.
type Observation struct {
	// Status is nil until the task is started.
	Status *Status
	// Message says what Start waits for, in a few words.
	Message string
	// Error says why Start takes longer than it should. It is empty if all is
	// well.
	Error string
}

// Ended tells how a task ended.
type Ended struct {
	// Status holds the exit code: 0 is success, 128+n is signal n.
	Status *Status
	At     time.Time
	// Error says why the task counts as failed whatever its exit code, if it
	// does: "unhealthy".
	Error string
}

// State is how far a listed task has come.
type State = executorv1.ListedTask_State

// The states of a listed task.
const (
	Prepared = executorv1.ListedTask_PREPARED
	Running  = executorv1.ListedTask_RUNNING
	Exited   = executorv1.ListedTask_ENDED
)

// Listed is one task that an executor holds something of.
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

// LogOptions say which lines are wanted.
type LogOptions struct {
	// Follow continues with lines as they are written.
	Follow bool
	// Tail is how many of the last lines are wanted; 0 means all.
	Tail int
	// Since is zero if the time does not matter.
	Since time.Time
	// Streams that are wanted; none means both.
	Streams []Stream
}

// Wants says whether lines of a stream are asked for.
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
