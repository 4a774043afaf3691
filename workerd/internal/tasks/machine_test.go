package tasks

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/nullnetwork"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/networks"
	"github.com/musterhq/muster/workerd/taskdb"
)

// Short names for the states in this package's tests.
const (
	preparing = musterv1.TaskState_PREPARING
	ready     = musterv1.TaskState_READY
	starting  = musterv1.TaskState_STARTING
	running   = musterv1.TaskState_RUNNING
	completed = musterv1.TaskState_COMPLETE
	shutdown  = musterv1.TaskState_SHUTDOWN
	failed    = musterv1.TaskState_FAILED
	rejected  = musterv1.TaskState_REJECTED
)

// errCrashed is the error of everything that a crashed worker still tries.
var errCrashed = errors.New("the worker has crashed")

// kind is the kind of the tests' tasks.
const kind = "fake"

// machine is what outlives a crash of the worker: the disk, the executor with its
// tasks, and what the managers want and know.
type machine struct {
	t *testing.T

	// reporting is held while a status is read and reported. It is taken before mu.
	reporting sync.Mutex

	mu sync.Mutex
	// points is the number of crash points that have been passed, and crashAt the
	// one to crash at.
	points, crashAt int
	// crashAgain, if not 0, is how many points after the first crash there is another.
	crashAgain int
	// life is the number of the worker that lives; older ones change nothing.
	life int
	// loseDisk makes each crash lose the disk too.
	loseDisk bool

	disk  disk
	held  map[string]*heldTask
	calls []string
	// inFlight are the calls that are being made about each task in this life.
	inFlight map[string]string
	starts   map[string]int
	// signals are those that were sent to each task.
	signals map[string][]string
	// faults are what the next calls of a method do.
	faults map[string][]fault
	// capabilities are the executor's, and observations what it reports during calls.
	capabilities []string
	observations chan *executor.Observation
	// twins, if set, returns several executors that share the machine.
	twins func(w *worker) []executor.Executor
	// set, if set, returns what the worker is given instead of the set of executors.
	set func(*executor.Fixed) executor.Set
	// mute keeps the executor from telling how a task ended.
	mute bool
	// connected is what assignments say of networks, objects are the networks, and kernel
	// is what the network plugin has set up.
	connected *dispatcherv1.AssignedTask
	objects   []*dispatcherv1.AssignedObject
	kernel    *nullnetwork.Kernel
	// group is that of the tasks' spec, and exits are the exit codes of containers that end
	// as soon as they are started.
	group []*musterv1.GroupContainer
	exits map[string]int32
	// refuses is the error of all writes to the disk.
	refuses error

	wanted   map[string]*dispatcherv1.AssignedTask
	reported map[string]*dispatcherv1.ReportedStatus
	history  map[string][]*dispatcherv1.ReportedStatus

	registry *prometheus.Registry
	worker   *worker
}

// disk is what the store holds.
type disk struct {
	contents taskdb.Contents
	writes   int
}

// state returns the state that is stored of a task.
func (d *disk) state(id string) musterv1.TaskState {
	if r := d.contents.Tasks[id]; r != nil {
		return r.Status.GetStatus().GetState()
	}
	return musterv1.TaskState_TASK_STATE_UNSPECIFIED
}

// heldTask is a task that the executor holds.
type heldTask struct {
	state    executor.State
	told     *executor.Task
	exitCode int32
	ended    chan struct{}
}

// fault is what one call to the executor does instead of what it should.
type fault struct {
	err error
	// hang has the call last until it is cancelled or the channel is closed.
	hang chan struct{}
}

// worker is one life of the worker.
type worker struct {
	*machine
	life    int
	manager *Manager
	// networks is nil unless tasks have networks.
	networks *networks.Networks
	cancel   context.CancelFunc
	done     chan struct{}
}

func newMachine(t *testing.T) *machine {
	m := &machine{
		t: t, held: map[string]*heldTask{}, inFlight: map[string]string{}, starts: map[string]int{}, signals: map[string][]string{}, faults: map[string][]fault{},
		wanted: map[string]*dispatcherv1.AssignedTask{}, reported: map[string]*dispatcherv1.ReportedStatus{},
		history: map[string][]*dispatcherv1.ReportedStatus{}, capabilities: []string{"update", "logs"},
		observations: make(chan *executor.Observation),
	}
	m.disk.clear()
	t.Cleanup(func() {
		if m.worker != nil {
			m.worker.stop()
		}
	})
	return m
}

func (d *disk) clear() {
	d.contents = taskdb.Contents{
		Tasks: map[string]*taskdb.Record{}, Specs: map[string]*musterv1.TaskSpec{}, Networks: map[string]*dispatcherv1.Assignments{},
	}
}

// start begins a new life of the worker. The session begins with sync.
func (m *machine) start() *worker {
	m.t.Helper()
	if m.worker != nil {
		m.worker.stop()
	}
	m.mu.Lock()
	m.life++
	m.registry = prometheus.NewRegistry()
	ctx, cancel := context.WithCancel(context.Background())
	w := &worker{machine: m, life: m.life, cancel: cancel, done: make(chan struct{})}
	clear(m.inFlight)
	contents := m.disk.copy()
	m.mu.Unlock()
	m.worker = w
	all := []executor.Executor{w}
	if m.twins != nil {
		all = m.twins(w)
	}
	fixed, err := executor.NewFixed(context.Background(), all...)
	if err != nil {
		m.t.Fatal(err)
	}
	var set executor.Set = fixed
	if m.set != nil {
		set = m.set(fixed)
	}
	if m.connected != nil {
		w.networks = w.newNetworks()
	}
	w.manager = New(Config{
		NodeID: "node1", Executors: set, Networks: w.networks, Store: w, Changed: w.changed, Metrics: m.registry,
		Logger: zaptest.NewLogger(m.t, zaptest.Level(zap.ErrorLevel)),
	})
	w.manager.Restore(contents)
	w.manager.SetExecutors(set.Describe(context.Background()))
	go func() {
		defer close(w.done)
		var networks sync.WaitGroup
		if w.networks != nil {
			networks.Go(func() { _ = w.networks.Run(ctx) })
		}
		_ = w.manager.Run(ctx)
		networks.Wait()
	}()
	return w
}

func (d *disk) copy() *taskdb.Contents {
	c := &taskdb.Contents{Tasks: map[string]*taskdb.Record{}, Specs: maps.Clone(d.contents.Specs), Networks: maps.Clone(d.contents.Networks), SetAside: d.contents.SetAside}
	for id, r := range d.contents.Tasks {
		record := *r
		c.Tasks[id] = &record
	}
	return c
}

// stop ends the worker in order.
func (w *worker) stop() {
	w.cancel()
	<-w.done
}

// point is a place where the worker may crash. It returns an error if it has
// crashed. The caller holds mu.
func (w *worker) point() error {
	if w.life != w.machine.life {
		return errCrashed
	}
	w.points++
	if w.points == w.crashAt {
		w.machine.life++
		w.cancel()
		w.crashAt, w.crashAgain = w.points+w.crashAgain, 0
		if w.loseDisk {
			w.disk.clear()
			w.disk.contents.SetAside = "elsewhere"
		}
		return errCrashed
	}
	return nil
}

// crashed reports whether the last worker has crashed.
func (m *machine) crashed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.worker.life != m.life
}

// Apply implements Store.
func (w *worker) Apply(specs map[string]*musterv1.TaskSpec, changes ...taskdb.Change) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.point(); err != nil {
		return err
	}
	if w.refuses != nil {
		return w.refuses
	}
	w.disk.apply(specs, changes)
	return w.point()
}

func (d *disk) apply(specs map[string]*musterv1.TaskSpec, changes []taskdb.Change) {
	d.writes++
	maps.Copy(d.contents.Specs, specs)
	for _, c := range changes {
		r := d.contents.Tasks[c.ID]
		if c.Forget {
			delete(d.contents.Tasks, c.ID)
			continue
		}
		if r == nil {
			// As in the real store, nothing can be written about a task that is not there.
			if c.Assigned == nil {
				continue
			}
			r = &taskdb.Record{}
			d.contents.Tasks[c.ID] = r
		}
		if c.Assigned != nil {
			r.Assigned = c.Assigned
		}
		if c.Status != nil {
			r.Status = c.Status
		}
		if c.Handle != nil {
			r.Handle = c.Handle
		}
		if c.Executor != "" {
			r.Executor = c.Executor
		}
		if c.Place != nil || c.NoPlace {
			r.Place = c.Place
		}
		r.Withdrawn = r.Withdrawn || c.Withdrawn
	}
}

// DropSpecs implements Store.
func (w *worker) DropSpecs(keep map[string]bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.point(); err != nil {
		return err
	}
	maps.DeleteFunc(w.disk.contents.Specs, func(digest string, _ *musterv1.TaskSpec) bool { return !keep[digest] })
	return nil
}

// settle lets the worker do what there is to do within a time. A worker that
// crashes is started again.
func (m *machine) settle(within time.Duration) {
	m.t.Helper()
	time.Sleep(within)
	synctest.Wait()
	for m.crashed() {
		m.start().sync()
		time.Sleep(within)
		synctest.Wait()
	}
}

// wantNothing fails the test if anything is left of a task.
func (m *machine) wantNothing(id string) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := m.held[id]; h != nil {
		m.t.Errorf("the executor still holds %s, %s", id, h.state)
	}
	if r := m.disk.contents.Tasks[id]; r != nil {
		m.t.Errorf("the store still holds %s: %v", id, r)
	}
	if slices.Contains(m.worker.manager.IDs(), id) {
		m.t.Errorf("the worker still knows %s", id)
	}
}

// wantStarts fails the test unless a task was started so often.
func (m *machine) wantStarts(id string, want int) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if got := m.starts[id]; got != want {
		m.t.Errorf("%s was started %d times, want %d", id, got, want)
	}
}

// wantCalls fails the test unless exactly these calls were made since the last
// time. A repetition counts once.
func (m *machine) wantCalls(want ...string) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if got := slices.Compact(m.calls); !slices.Equal(got, want) {
		m.t.Errorf("calls = %q, want %q", got, want)
	}
	m.calls = nil
}

// exit ends a task that runs.
func (m *machine) exit(id string, code int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := m.held[id]; h != nil && h.state == executor.StateRunning {
		h.end(code)
	}
}

func (h *heldTask) end(code int32) {
	h.state, h.exitCode = executor.StateEnded, code
	close(h.ended)
}

func (h *heldTask) runtime() *musterv1.RuntimeStatus {
	if h == nil || h.state == executor.StatePrepared {
		return nil
	}
	return &musterv1.RuntimeStatus{ExitCode: h.exitCode}
}

// fail has the next calls of a method fail.
func (m *machine) fail(method string, times int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for range times {
		m.faults[method] = append(m.faults[method], fault{err: err})
	}
}

// nextError returns the error of a method's next fault, if there is one.
func (m *machine) nextError(method string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.faults[method]
	if len(all) == 0 {
		return nil
	}
	m.faults[method] = all[1:]
	return all[0].err
}

// mend has no further calls fail.
func (m *machine) mend() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.faults)
}

// hang has the next call of a method hang until it is cancelled, or until the
// returned function is called.
func (m *machine) hang(method string) (release func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := fault{hang: make(chan struct{})}
	m.faults[method] = append(m.faults[method], f)
	return func() { close(f.hang) }
}

// refuse has the disk refuse writes, or take them again.
func (m *machine) refuse(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuses = err
}

func temporary(text string) error {
	return &executor.Error{Temporary: true, Err: errors.New(text)}
}

func fatal(text string) error { return &executor.Error{Err: errors.New(text)} }

// call makes a call to the executor: effect is what it does. The worker may crash
// before it, and after it but before it knows.
func (w *worker) call(ctx context.Context, method, id string, effect func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.point(); err != nil {
		return err
	}
	// Calls to the network plugin are not calls to the executor.
	busy := id
	if method == "attach" || method == "detach" {
		busy += "'s network"
	}
	if other := w.inFlight[busy]; id != "" && other != "" {
		w.t.Errorf("%s of %s was called during %s", method, id, other)
	}
	w.inFlight[busy] = method
	defer func() {
		if w.life == w.machine.life {
			delete(w.inFlight, busy)
		}
	}()
	w.calls = append(w.calls, fmt.Sprint(method, " ", id))
	if all := w.faults[method]; len(all) > 0 {
		w.faults[method] = all[1:]
		if all[0].err != nil {
			return all[0].err
		}
		w.mu.Unlock()
		select {
		case <-all[0].hang:
		case <-ctx.Done():
		}
		w.mu.Lock()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if w.life != w.machine.life {
			return errCrashed
		}
	}
	if err := effect(); err != nil {
		return err
	}
	return w.point()
}

// wantStored fails the test unless the store holds a state of a task, or a later
// one, before the executor is called. The caller holds mu.
func (w *worker) wantStored(id string, state musterv1.TaskState) {
	if got := w.disk.state(id); got < state {
		w.t.Errorf("the executor was called for %s while the store holds %s, want %s", id, got, state)
	}
}
