// Package tasks runs the tasks of one worker: it takes in what is assigned, brings
// each task through its states by calling its executor, and knows what must be
// reported about it.
//
// A [Manager] holds all tasks. The state of each task has one owner: the goroutine
// that drains the task's inbox, which exists only while there is something to do.
// What the managers want, what a call to the executor returned, and the end of a
// pause are events in the inbox; calls are made outside of the owner, one at a
// time. What the owner is about to do is written to a [Store] first, and what has
// happened is written before it is reported, so a worker that dies at any point
// finds out what it had begun. See save.go for what happens when the store
// refuses.
//
// When something else must be done than what a call is about, the call is
// cancelled, and its error decides nothing.
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
	"github.com/musterhq/muster/workerd/internal/groups"
	"github.com/musterhq/muster/workerd/internal/networks"
	"github.com/musterhq/muster/workerd/taskdb"
)

// Store keeps tasks beyond the end of the process.
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
	// Networks are the networks of the node. Nil: it has none.
	Networks *networks.Networks
	// Node is what templates of tasks can use of the node. Nil: nothing.
	Node *musterv1.NodeDescription
	// Files keeps the secrets and configs of tasks. Nil: no task can have any.
	Files Files
	// Store may be nil: nothing is stored then.
	Store Store
	// Changed is called when there is something new to report of a task. Settled
	// means that the status will probably hold for a while. Changed must return
	// soon.
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
	// admitted is closed once a dispatcher has accepted this worker as the node.
	admitted chan struct{}
	admit    sync.Once
	// run is the context of all calls; it is set before ready is closed.
	run context.Context

	// living guards the goroutines of Run. It is the innermost lock.
	living sync.Mutex
	closed bool
	wg     sync.WaitGroup

	// assigning has room for one. The goroutine that has put a value in takes in a
	// message with assignments. Messages are taken in one after the other.
	assigning chan struct{}
	// incoming collects the ids of a complete set until its last message.
	incoming map[string]bool

	// blank is the record of all tasks of which nothing is known yet.
	blank *record

	// objects holds the objects that tasks refer to, and networks connects tasks.
	objects  *dependencies.Store
	networks *networks.Networks

	mu    sync.Mutex
	tasks map[string]*task
	// synced is set once a complete set of assignments has been taken in.
	synced bool
	// executors are the node's executors, as last described.
	executors []*executor.Described
}

// New returns a manager without tasks.
func New(cfg Config) *Manager {
	if cfg.Networks == nil {
		cfg.Networks = networks.New(networks.Config{NodeID: cfg.NodeID, Logger: cfg.Logger})
	}
	m := &Manager{
		cfg:       cfg,
		log:       cfg.Logger,
		inventory: newInventory(cfg.NodeID),
		ready:     make(chan struct{}),
		admitted:  make(chan struct{}),
		assigning: make(chan struct{}, 1),
		blank:     &record{},
		objects:   dependencies.New(cfg.Networks),
		networks:  cfg.Networks,
		tasks:     map[string]*task{},
	}
	m.metrics = newMetrics(cfg.Metrics, m.countStates)
	return m
}

// Restore takes in what was stored. It must be called before Run.
func (m *Manager) Restore(contents *taskdb.Contents) {
	for digest, spec := range contents.Specs {
		m.objects.PutSpec([]byte(digest), spec)
	}
	for _, network := range contents.Networks {
		for _, object := range network.GetObjects() {
			m.objects.Restore(object)
		}
	}
	for id, record := range contents.Tasks {
		m.tasks[id] = m.restored(id, record)
	}
	m.keepFiles()
	if contents.SetAside == "" {
		m.networks.Restored()
	}
	m.dropSpecs()
}

// Run brings the tasks through their states until ctx ends. It then cancels the
// open calls and waits for them. The tasks themselves run on.
//
// Restored tasks are left alone until the first session has begun: before that,
// another worker may be the node, and this one a copy of it.
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
			t.post(wakeUp{})
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

// spawn runs f in a goroutine that Run waits for. It returns false, and does
// nothing, before Run has begun and once Run ends.
func (m *Manager) spawn(f func()) bool {
	m.living.Lock()
	defer m.living.Unlock()
	if m.closed || m.run == nil {
		return false
	}
	m.wg.Go(f)
	return true
}

// Status returns the status to report of a task, or nil if there is none.
func (m *Manager) Status(id string) *dispatcherv1.ReportedStatus {
	m.mu.Lock()
	t := m.tasks[id]
	silent := t == nil || t.want.withdrawn
	m.mu.Unlock()
	if silent {
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

// store writes changes to the store, if there is one.
func (m *Manager) store(specs map[string]*musterv1.TaskSpec, changes ...taskdb.Change) error {
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

// forget removes a task of which nothing is left. A task that was assigned again in
// the meantime begins again. Until then it stays known, so that it can be withdrawn.
func (m *Manager) forget(t *task) {
	m.inventory.forget(t.id)
	for _, id := range groups.ContainerIDs(t.id, t.spec) {
		m.inventory.forget(id)
	}
	m.mu.Lock()
	again, refs := t.want.again != nil, t.refs
	if !again {
		delete(m.tasks, t.id)
	}
	m.mu.Unlock()
	if !again {
		m.objects.Release(refs)
		return
	}
	m.spawn(func() {
		m.assigning <- struct{}{}
		defer func() { <-m.assigning }()
		defer m.objects.Release(refs)
		m.mu.Lock()
		delete(m.tasks, t.id)
		newest := t.want.again
		m.mu.Unlock()
		if newest == nil {
			return
		}
		if err := m.add([]*dispatcherv1.AssignedTask{newest}); err != nil {
			m.log.Error("failed to accept a task that was assigned again", zap.String("task", t.id), zap.Error(err))
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
		counts[t.published.Load().status.State]++
	}
	return counts
}
