package tasks

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"github.com/musterhq/muster/workerd/executor"
)

// inventory is what the executors held when this worker first asked them, without
// what the worker has removed since. A task that this worker did not begin itself
// cannot be in a later answer unless it was in the first one.
type inventory struct {
	node string

	mu        sync.Mutex
	executors map[string]*holdings
	// removed are the tasks that were removed while an executor was being asked.
	// The answer may still hold them.
	removed map[string]bool
	// asking is the number of executors that are being asked.
	asking int
}

// holdings is what one executor held.
type holdings struct {
	// token has room for one. The goroutine that has put a value in asks the
	// executor.
	token chan struct{}
	// tasks is nil until the executor has answered.
	tasks map[string]executor.Listed
	// swept is set once tasks that were never assigned have been found.
	swept bool
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
		h = &holdings{token: make(chan struct{}, 1)}
		i.executors[name] = h
	}
	return h
}

// ask returns what an executor held. It asks the executor if that has not been
// done yet.
func (i *inventory) ask(ctx context.Context, e *executor.Described) (*holdings, error) {
	h := i.of(e.Name)
	select {
	case h.token <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-h.token }()
	i.mu.Lock()
	if h.tasks != nil {
		defer i.mu.Unlock()
		return h, nil
	}
	i.asking++
	i.mu.Unlock()
	all, err := within(ctx, quickCall, func(ctx context.Context) ([]executor.Listed, error) {
		return e.Executor.List(ctx, i.node)
	})
	i.mu.Lock()
	defer i.mu.Unlock()
	defer func() {
		if i.asking--; i.asking == 0 {
			clear(i.removed)
		}
	}()
	if err != nil {
		return nil, err
	}
	h.tasks = make(map[string]executor.Listed, len(all))
	for _, listed := range all {
		if id := listed.TaskID; !i.removed[id] {
			h.tasks[id] = listed
		}
	}
	return h, nil
}

// all returns what an executor held.
func (i *inventory) all(ctx context.Context, e *executor.Described) (map[string]executor.Listed, error) {
	h, err := i.ask(ctx, e)
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return maps.Clone(h.tasks), nil
}

// holder returns the name of the executor that holds a task of an earlier life of the
// worker; empty if none is known to, or if there is no choice. An executor that has not
// said what it runs may be the one. That one does not tell what it holds says nothing
// about the task: the error is temporary, whatever it is.
func (m *Manager) holder(ctx context.Context, kind, id string) (string, error) {
	m.mu.Lock()
	all := m.executors
	m.mu.Unlock()
	var candidates, silent []*executor.Described
	for _, e := range all {
		switch {
		case e.Executor == nil:
		case e.Runs(kind):
			candidates = append(candidates, e)
		case len(e.Description.GetKinds()) == 0:
			silent = append(silent, e)
		}
	}
	// Those that are not up yet are asked last.
	if candidates = append(candidates, silent...); len(candidates) < 2 {
		return "", nil
	}
	var failed error
	for _, e := range candidates {
		_, found, err := m.inventory.find(ctx, e, id)
		switch {
		case found:
			return e.Name, nil
		case err != nil:
			// It may be the one.
			temporary := executor.ErrorOf(fmt.Errorf("list tasks: %w", err))
			temporary.Temporary = true
			failed = temporary
		}
	}
	return "", failed
}

// find returns a task that an executor held, and whether the executor held it.
func (i *inventory) find(ctx context.Context, e *executor.Described, id string) (listed executor.Listed, found bool, err error) {
	h, err := i.ask(ctx, e)
	if err != nil {
		return listed, false, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	listed, found = h.tasks[id]
	return listed, found, nil
}

// forget notes that no executor holds a task any more.
func (i *inventory) forget(id string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, h := range i.executors {
		delete(h.tasks, id)
	}
	if i.asking > 0 {
		i.removed[id] = true
	}
}
