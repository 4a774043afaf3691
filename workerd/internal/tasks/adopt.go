package tasks

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"go.uber.org/zap"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
)

// inventory is what the executors held when this worker first asked them, less
// what it has removed since. A task that this worker did not begin itself can be in
// no later answer that was not in this one.
type inventory struct {
	node string

	mu        sync.Mutex
	executors map[string]*holdings
	// removed are tasks that were removed while an executor was being asked, whose
	// answer may hold them still.
	removed map[string]bool
	asked   int
}

// holdings is what one executor held.
type holdings struct {
	// asking holds one token: whoever has it asks.
	asking chan struct{}
	tasks  map[string]*executorv1.ListedTask
	swept  bool
}

func newInventory(node string) *inventory {
	return &inventory{node: node, executors: map[string]*holdings{}, removed: map[string]bool{}}
}

// of returns the holdings of an executor, by name.
func (i *inventory) of(name string) *holdings {
	i.mu.Lock()
	defer i.mu.Unlock()
	h := i.executors[name]
	if h == nil {
		h = &holdings{asking: make(chan struct{}, 1)}
		i.executors[name] = h
	}
	return h
}

// ask finds out what an executor holds, if nobody has yet.
func (i *inventory) ask(ctx context.Context, e *executor.Described) (*holdings, error) {
	h := i.of(e.Name)
	select {
	case h.asking <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-h.asking }()
	i.mu.Lock()
	if h.tasks != nil {
		defer i.mu.Unlock()
		return h, nil
	}
	i.asked++
	i.mu.Unlock()
	res, err := within(ctx, quickCall, func(ctx context.Context) (*executorv1.ListResponse, error) {
		return e.Executor.List(ctx, &executorv1.ListRequest{NodeId: i.node})
	})
	i.mu.Lock()
	defer i.mu.Unlock()
	defer func() {
		if i.asked--; i.asked == 0 {
			clear(i.removed)
		}
	}()
	if err != nil {
		return nil, err
	}
	h.tasks = make(map[string]*executorv1.ListedTask, len(res.GetTasks()))
	for _, listed := range res.GetTasks() {
		if id := listed.GetTaskId(); !i.removed[id] {
			h.tasks[id] = listed
		}
	}
	return h, nil
}

// all returns what an executor held.
func (i *inventory) all(ctx context.Context, e *executor.Described) (map[string]*executorv1.ListedTask, error) {
	h, err := i.ask(ctx, e)
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return maps.Clone(h.tasks), nil
}

// find returns one task that an executor held, and whether it did.
func (i *inventory) find(ctx context.Context, e *executor.Described, id string) (*executorv1.ListedTask, bool, error) {
	h, err := i.ask(ctx, e)
	if err != nil {
		return nil, false, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	listed, found := h.tasks[id]
	return listed, found, nil
}

// forget notes that a task was removed: no executor holds it any more.
func (i *inventory) forget(id string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, h := range i.executors {
		delete(h.tasks, id)
	}
	if i.asked > 0 {
		i.removed[id] = true
	}
}

// lookUp finds out what has become of a task that the managers know more of
// than this worker, which has lost its memory.
func (t *task) lookUp(ctx context.Context) error {
	e, err := t.executor(ctx)
	if err != nil {
		return err
	}
	listed, found, err := t.m.inventory.find(ctx, e, t.id)
	if err != nil {
		return fmt.Errorf("list tasks: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.adopt = false
	known := t.status.State
	t.m.log.Info("task that was forgotten is looked up",
		zap.String("task", t.id), zap.Stringer("known", known), zap.Stringer("found", listed.GetState()))
	switch {
	case !found && known >= musterv1.TaskState_STARTING:
		t.status.Move(lifecycle.Failure(known), time.Now(), "started")
		t.status.Error = "task: lost together with the worker's memory of it"
		t.status.NodeToBlame = true
	case !found, listed.GetState() == executorv1.ListedTask_PREPARED:
		// To prepare again what is prepared changes nothing. What is less than
		// known stays unreported.
		t.handle = listed.GetHandle()
		t.status.State = musterv1.TaskState_ACCEPTED
		t.status.Move(musterv1.TaskState_PREPARING, time.Now(), "preparing")
	default:
		// It runs, or Wait will tell how it ended.
		t.handle = listed.GetHandle()
		t.status.Runtime = listed.GetRuntime()
		t.status.State = min(known, musterv1.TaskState_STARTING)
		t.status.Move(musterv1.TaskState_RUNNING, time.Now(), "started")
	}
	t.dirty = true
	return nil
}

// held finds out whether an executor holds a task that this worker has not begun.
// What no executor here runs, none holds.
func (t *task) held(ctx context.Context) (bool, error) {
	t.mu.Lock()
	unsure := t.unsure
	t.mu.Unlock()
	if !unsure {
		return false, nil
	}
	var listed *executorv1.ListedTask
	found := false
	e, err := within(ctx, quickCall, t.executor)
	switch refused := (*wire.Error)(nil); {
	case err == nil:
		if listed, found, err = t.m.inventory.find(ctx, e, t.id); err != nil {
			return false, fmt.Errorf("list tasks: %w", err)
		}
	case !errors.As(wire.FromStatus(err), &refused) || refused.Temporary:
		return false, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unsure = false
	if found {
		t.handle = listed.GetHandle()
		t.status.Runtime = listed.GetRuntime()
	}
	return found, nil
}

// Sweep looks for tasks that executors hold and nobody knows, and removes them.
// It does nothing before the managers have said once what is assigned: until
// then, nobody knows what nobody knows.
func (m *Manager) Sweep() {
	m.mu.Lock()
	synced := m.synced
	m.mu.Unlock()
	if !synced {
		return
	}
	for _, e := range m.latest() {
		if e.Executor == nil || e.Description.GetHealth() != musterv1.ExecutorDescription_HEALTHY {
			continue
		}
		m.spawn(func() { m.sweep(e) })
	}
}

// SetExecutors tells the manager of the executors as they are now.
func (m *Manager) SetExecutors(all []*executor.Described) {
	m.mu.Lock()
	m.executors = all
	m.mu.Unlock()
	m.Sweep()
}

// latest returns the executors as they were last described.
func (m *Manager) latest() []*executor.Described {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.executors
}

// sweep removes what one executor holds and nobody knows, once.
func (m *Manager) sweep(e *executor.Described) {
	held, err := m.inventory.all(m.run, e)
	if err != nil {
		if m.run.Err() == nil {
			m.log.Warn("executor does not say what it holds", zap.String("executor", e.Name), zap.Error(err))
		}
		return
	}
	h := m.inventory.of(e.Name)
	var orphans []*task
	m.mu.Lock()
	if !h.swept {
		h.swept = true
		for id := range held {
			if m.tasks[id] != nil {
				continue
			}
			t := &task{
				m: m, id: id, orphan: true, owner: e, withdrawn: true, handle: held[id].GetHandle(),
				status: lifecycle.Status{State: musterv1.TaskState_RUNNING},
			}
			m.tasks[id] = t
			orphans = append(orphans, t)
		}
	}
	m.mu.Unlock()
	for _, t := range orphans {
		m.log.Warn("removing a task that nobody knows", zap.String("task", t.id), zap.String("executor", e.Name))
		t.kick()
	}
}
