// Package tasks runs the tasks of one worker: it takes in what is assigned,
// brings each task through its states by calling its executor, and knows what
// is to be reported of it.
//
// A [Manager] holds all tasks. Each moves on in a goroutine of its own, which
// exists only while there is something to do or to wait for. What it is about
// to do is kept in a [Store] before it is done, and what has happened is kept
// before it is reported, so that a worker that dies anywhere finds out; see
// save.go for what is done when the store refuses.
//
// Calls for one task are made one at a time. When something else is to be done
// than what a call is about, the call is cancelled, and its outcome decides
// nothing.
package tasks

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/tracing"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/dependencies"
	"github.com/musterhq/muster/workerd/taskdb"
)

// Store keeps tasks over the end of the process.
type Store interface {
	// Apply writes specs by digest and changes of tasks, all or none.
	Apply(specs map[string]*musterv1.TaskSpec, changes ...taskdb.Change) error
	// DropSpecs removes the specs that are not in keep.
	DropSpecs(keep map[string]bool) error
}

// Config is what a manager needs.
type Config struct {
	NodeID    string
	Executors executor.Set
	// Store may be nil: nothing is kept then.
	Store Store
	// Changed is called when there is something new to report of a task.
	// Settled means that the task is likely to stay so for a while. It must
	// return soon.
	Changed func(task string, settled bool)
	Logger  *zap.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
	// Tracer may be nil.
	Tracer *tracing.Tracer
}

// Manager holds the tasks of a worker.
type Manager struct {
	cfg       Config
	log       *zap.Logger
	metrics   *metrics
	inventory *inventory

	// ready is closed once Run may start goroutines.
	ready chan struct{}
	// admitted is closed, once, when a dispatcher has said that this worker is the
	// node.
	admitted chan struct{}
	admit    sync.Once
	// run is the context of all calls; it is set before ready is closed.
	run context.Context

	// living guards the goroutines of Run. It is taken last of all locks.
	living sync.Mutex
	closed bool
	wg     sync.WaitGroup

	// assigning is held while an assignment is taken in, so that they are
	// taken in one after the other.
	assigning sync.Mutex
	// incoming collects the ids of a complete set until its last message.
	incoming map[string]bool

	// objects are what tasks refer to.
	objects *dependencies.Store

	mu    sync.Mutex
	tasks map[string]*task
	// synced: a complete set of assignments has been taken in.
	synced bool
	// executors are those of the node, as last described.
	executors []*executor.Described
}

// New returns a manager that holds no tasks yet.
func New(cfg Config) *Manager {
	m := &Manager{
		cfg:       cfg,
		log:       cfg.Logger,
		inventory: newInventory(cfg.NodeID),
		ready:     make(chan struct{}),
		admitted:  make(chan struct{}),
		objects:   dependencies.New(),
		tasks:     map[string]*task{},
	}
	m.metrics = newMetrics(cfg.Metrics, m.countStates)
	return m
}

// Restore takes in what a store held. It must be called before Run.
func (m *Manager) Restore(contents *taskdb.Contents) {
	for digest, spec := range contents.Specs {
		m.objects.PutSpec([]byte(digest), spec)
	}
	for id, record := range contents.Tasks {
		m.tasks[id] = m.restored(id, record)
	}
	m.dropSpecs()
}

// Run brings the tasks through their states until ctx ends. Then it cancels
// the calls that are open and waits for them; the tasks themselves run on.
//
// Nothing is done about tasks that were restored before the first session has
// begun: until then, another worker may be the node, and this one a copy of it.
func (m *Manager) Run(ctx context.Context) error {
	m.living.Lock()
	m.run = ctx
	m.living.Unlock()
	m.mu.Lock()
	restored := slices.Collect(maps.Values(m.tasks))
	m.mu.Unlock()
	close(m.ready)
	select {
	case <-m.admitted:
		for _, t := range restored {
			t.kick()
		}
		<-ctx.Done()
	case <-ctx.Done():
	}
	m.living.Lock()
	m.closed = true
	m.living.Unlock()
	m.wg.Wait()
	return ctx.Err()
}

// spawn runs f in a goroutine that Run waits for. It says whether it did: once
// Run ends nothing is begun any more.
func (m *Manager) spawn(f func()) bool {
	m.living.Lock()
	defer m.living.Unlock()
	if m.closed || m.run == nil {
		return false
	}
	m.wg.Go(f)
	return true
}

// Status returns what is to be reported of a task, or nil if there is nothing.
func (m *Manager) Status(id string) *dispatcherv1.ReportedStatus {
	m.mu.Lock()
	t := m.tasks[id]
	m.mu.Unlock()
	if t == nil {
		return nil
	}
	return t.report()
}

// IDs returns the ids of all tasks.
func (m *Manager) IDs() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Keys(m.tasks))
}

// keep writes changes to the store, if there is one.
func (m *Manager) keep(specs map[string]*musterv1.TaskSpec, changes ...taskdb.Change) error {
	if m.cfg.Store == nil {
		return nil
	}
	return m.cfg.Store.Apply(specs, changes...)
}

// dropSpecs drops the specs that no task refers to, when a session begins.
func (m *Manager) dropSpecs() {
	used, dropped := m.objects.Begin()
	if !dropped || m.cfg.Store == nil {
		return
	}
	if err := m.cfg.Store.DropSpecs(used); err != nil {
		m.log.Warn("failed to remove unused task specs from disk", zap.Error(err))
	}
}

// forget removes a task that nothing is left of. A task that was assigned again
// meanwhile begins anew.
func (m *Manager) forget(t *task) {
	m.inventory.forget(t.id)
	m.mu.Lock()
	delete(m.tasks, t.id)
	m.mu.Unlock()
	t.mu.Lock()
	again := t.again
	t.mu.Unlock()
	if again == nil {
		m.objects.Release(t.refs)
		return
	}
	m.spawn(func() {
		m.assigning.Lock()
		defer m.assigning.Unlock()
		defer m.objects.Release(t.refs)
		if err := m.add([]*dispatcherv1.AssignedTask{again}); err != nil {
			m.log.Error("task that was assigned again is not kept", zap.String("task", t.id), zap.Error(err))
		}
	})
}

// countStates counts tasks by their states, for the metrics.
func (m *Manager) countStates() map[musterv1.TaskState]int {
	m.mu.Lock()
	tasks := slices.Collect(maps.Values(m.tasks))
	m.mu.Unlock()
	counts := map[musterv1.TaskState]int{}
	for _, t := range tasks {
		t.mu.Lock()
		counts[t.status.State]++
		t.mu.Unlock()
	}
	return counts
}
