package docker

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
	"go.uber.org/zap"
)

const (
	// PoolSizeKey names the variable that says how many pause containers are kept ready.
	PoolSizeKey = "MUSTER_DOCKER_POOL"
	// defaultPoolSize is how many there are without it, and maxPoolSize the most.
	defaultPoolSize = 2
	maxPoolSize     = 100
	// poolPrefix is what the names of pause containers begin with that no task has.
	poolPrefix = "muster-pool-"
	// poolIdle is how long a pool is kept after the last networked task is gone.
	poolIdle = time.Minute
	// poolPatience bounds the creation and the removal of a pause container.
	poolPatience = 30 * time.Second
	// closePatience is how long the end of the process is held up to remove them. What
	// is left the next process takes over.
	closePatience = 1500 * time.Millisecond
)

// PoolSize reads the size of the pool. An empty text means the default.
func PoolSize(text string) (int, error) {
	if text == "" {
		return defaultPoolSize, nil
	}
	size, err := strconv.Atoi(text)
	if err != nil || size < 0 || size > maxPoolSize {
		return 0, fmt.Errorf("invalid %s %q: want a number from 0 to %d", PoolSizeKey, text, maxPoolSize)
	}
	return size, nil
}

// pool keeps pause containers of nodes that run, so that a task need not wait for one. A
// pause container is taken by giving it the name of a task's. Those that a former process
// has left are taken over.
type pool struct {
	e    *Executor
	size int

	mu sync.Mutex
	// free are the names of pause containers, by node. A node that is not in it has not
	// been looked at.
	free   map[string][]string
	closed bool
	work   sync.WaitGroup
	// filling is the nodes whose pool is being filled, and idle those whose pool will be
	// given up.
	filling map[string]bool
	idle    map[string]*time.Timer
}

func newPool(e *Executor, size int) *pool {
	return &pool{e: e, size: size, free: map[string][]string{}, filling: map[string]bool{}, idle: map[string]*time.Timer{}}
}

// take gives a pause container of the node's pool a name. It returns false if there is
// none.
func (p *pool) take(ctx context.Context, nodeID, name string) bool {
	if !p.open(ctx, nodeID) {
		return false
	}
	for {
		free := p.pop(nodeID)
		if free == "" {
			return false
		}
		err := p.e.engine.ContainerRename(ctx, free, name)
		if err == nil {
			return true
		}
		if !isNotFound(err) {
			// Whether it has the new name is not known. The caller looks, and a new
			// process takes it over otherwise.
			return false
		}
	}
}

// open takes over what a former process has left in the node's pool.
func (p *pool) open(ctx context.Context, nodeID string) bool {
	p.mu.Lock()
	_, known := p.free[nodeID]
	p.mu.Unlock()
	if known {
		return true
	}
	i, err := p.e.pauseImage(ctx)
	if err != nil {
		return false
	}
	found, err := p.e.listPauses(ctx, nodeID)
	if err != nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.free[nodeID]; known || p.closed {
		return known
	}
	p.free[nodeID] = nil
	for _, summary := range found {
		name := poolName(summary)
		switch {
		case name == "":
		case summary.State == container.StateRunning && summary.Image == i.name && len(p.free[nodeID]) < p.size:
			p.free[nodeID] = append(p.free[nodeID], name)
		case summary.State == container.StateCreated && summary.Image == i.name:
			// The former process may have asked the Engine to start it just now, and to
			// remove it meanwhile confuses some Engines.
			p.work.Go(func() { p.adopt(nodeID, name) })
		default:
			p.work.Go(func() { p.remove(name) })
		}
	}
	return true
}

// adopt starts a pause container that a former process has created, for the node's pool.
func (p *pool) adopt(nodeID, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), poolPatience)
	defer cancel()
	err := p.e.startPause(ctx, name)
	p.mu.Lock()
	wanted := err == nil && len(p.free[nodeID]) < p.size
	if wanted {
		p.free[nodeID] = append(p.free[nodeID], name)
	}
	p.mu.Unlock()
	if !wanted {
		p.remove(name)
	}
}

// poolName returns the name of a pause container that no task has; "" if it is another.
func poolName(summary container.Summary) string {
	for _, name := range summary.Names {
		if name = strings.TrimPrefix(name, "/"); strings.HasPrefix(name, poolPrefix) {
			return name
		}
	}
	return ""
}

func (p *pool) pop(nodeID string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keep(nodeID)
	free := p.free[nodeID]
	if len(free) == 0 {
		return ""
	}
	p.free[nodeID] = free[1:]
	return free[0]
}

// keep keeps the node's pool from being given up. The caller holds mu.
func (p *pool) keep(nodeID string) {
	if timer := p.idle[nodeID]; timer != nil {
		timer.Stop()
		delete(p.idle, nodeID)
	}
}

// fill begins to fill the node's pool.
func (p *pool) fill(nodeID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keep(nodeID)
	if p.closed || p.filling[nodeID] || len(p.free[nodeID]) >= p.size {
		return
	}
	p.filling[nodeID] = true
	p.work.Go(func() {
		for p.add(nodeID) {
		}
	})
}

// add adds one pause container to the node's pool. It returns false when there is nothing
// more to do.
func (p *pool) add(nodeID string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), poolPatience)
	defer cancel()
	name := poolPrefix + strings.ToLower(rand.Text())
	_, err := p.e.createPause(ctx, name, nodeID, "", nil)
	if err != nil {
		// The next task has to wait for its pause container, and then the pool is filled.
		p.e.log.Warn("failed to create pause container for the pool", zap.Error(err))
		p.remove(name)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.free[nodeID] = append(p.free[nodeID], name)
	}
	more := err == nil && !p.closed && len(p.free[nodeID]) < p.size
	p.filling[nodeID] = more
	return more
}

// released gives the node's pool up, some time after no task has a pause container any
// more.
func (p *pool) released(ctx context.Context, nodeID string) {
	found, err := p.e.listPauses(ctx, nodeID)
	if err != nil || slices.ContainsFunc(found, func(s container.Summary) bool { return pauseTask(s) != "" }) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.idle[nodeID] != nil {
		return
	}
	p.idle[nodeID] = time.AfterFunc(poolIdle, func() { p.drop(nodeID) })
}

// drop removes the pause containers of the node's pool.
func (p *pool) drop(nodeID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	for _, name := range p.free[nodeID] {
		p.work.Go(func() { p.remove(name) })
	}
	delete(p.free, nodeID)
	delete(p.idle, nodeID)
}

func (p *pool) remove(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), poolPatience)
	defer cancel()
	if err := p.e.remove(ctx, name); err != nil {
		p.e.log.Warn("failed to remove pause container of the pool", zap.String("container", name), zap.Error(err))
	}
}

// close removes all pause containers that no task has, and waits a moment for that.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	for _, timer := range p.idle {
		timer.Stop()
	}
	p.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.work.Wait()
		p.mu.Lock()
		nodes := p.free
		p.free = map[string][]string{}
		p.mu.Unlock()
		for _, names := range nodes {
			for _, name := range names {
				p.work.Go(func() { p.remove(name) })
			}
		}
		p.work.Wait()
	}()
	select {
	case <-done:
	case <-time.After(closePatience):
	}
}
