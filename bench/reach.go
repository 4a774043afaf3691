package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backends"
	"github.com/musterhq/muster/workerd/network"
)

const (
	// newTasks is how many tasks are started one after the other.
	newTasks = 40
	// burst is how many tasks are started at once after that.
	burst = 100
)

// arrivals notes when the network plugins of workers are first told of a task that gets
// traffic.
type arrivals struct {
	mu sync.Mutex
	// at has a time for each worker by task.
	at      map[string]map[int]time.Time
	changed chan struct{}
}

func newArrivals() *arrivals {
	return &arrivals{at: map[string]map[int]time.Time{}, changed: make(chan struct{})}
}

// applied notes what the plugin of a worker is told.
func (a *arrivals) applied(worker int, change *network.Change) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range change.Backends {
		for _, packed := range b.Changes {
			// What cannot be unpacked is missed by the measurement.
			found, _, _ := backends.Unpack(packed)
			for _, backend := range found {
				id := backend.GetTaskId()
				if a.at[id] == nil {
					a.at[id] = map[int]time.Time{}
				}
				if a.at[id][worker].IsZero() {
					a.at[id][worker] = now
				}
			}
		}
	}
	close(a.changed)
	a.changed = make(chan struct{})
}

// last returns when the last of so many workers was told of a task.
func (a *arrivals) last(ctx context.Context, task string, workers int) (time.Time, error) {
	for {
		a.mu.Lock()
		at, changed := a.at[task], a.changed
		if len(at) == workers {
			var last time.Time
			for _, t := range at {
				if t.After(last) {
					last = t
				}
			}
			a.mu.Unlock()
			return last, nil
		}
		known := len(at)
		a.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%d of %d workers know task %s: %w", known, workers, task, context.Cause(ctx))
		}
	}
}

// reach measures the time from a task's RUNNING, as its worker says, until the network
// plugin of every worker has been told of it: for tasks that start alone, and for many at
// once. Every worker has tasks of the service.
func reach(ctx context.Context, s *site) error {
	watch, err := s.watch(ctx)
	if err != nil {
		return err
	}
	tasks := uint64(s.result.Tasks)
	service, err := s.create(ctx, spec("bench", s.result.Tasks, nil))
	if err != nil {
		return err
	}
	if err := await(watch, runs(service.Id, tasks)); err != nil {
		return err
	}
	known := map[string]bool{}
	if _, err := s.reached(ctx, service.Id, known); err != nil {
		return err
	}
	if err := s.quiet(ctx); err != nil {
		return err
	}
	grow := func(n uint64) ([]float64, error) {
		tasks += n
		if err := s.scale(ctx, service.Id, tasks); err != nil {
			return nil, err
		}
		if err := await(watch, runs(service.Id, tasks)); err != nil {
			return nil, err
		}
		return s.reached(ctx, service.Id, known)
	}
	var alone []float64
	for range newTasks {
		took, err := grow(1)
		if err != nil {
			return err
		}
		alone = append(alone, took...)
	}
	together, err := grow(burst)
	if err != nil {
		return err
	}
	for name, took := range map[string][]float64{"one task reachable everywhere": alone, fmt.Sprintf("%d tasks at once", burst): together} {
		slices.Sort(took)
		s.result.add(name+", median", took[len(took)/2], "ms")
		s.result.add(name+", longest (limit 100 ms)", took[len(took)-1], "ms")
	}
	return nil
}

// reached waits until all workers know the tasks of a service that are not in known, and
// returns how long that took after each was RUNNING, in ms.
func (s *site) reached(ctx context.Context, service string, known map[string]bool) ([]float64, error) {
	var took []float64
	request := &musterv1.ListTasksRequest{Services: []string{service}, PageSize: 1000}
	for {
		page, err := s.client.ListTasks(ctx, request)
		if err != nil {
			return nil, fmt.Errorf("list tasks: %w", err)
		}
		for _, t := range page.Tasks {
			if known[t.Id] {
				continue
			}
			known[t.Id] = true
			last, err := s.arrivals.last(ctx, t.Id, s.result.Workers)
			if err != nil {
				return nil, err
			}
			for _, stage := range t.Timeline {
				if stage.State == musterv1.TaskState_RUNNING {
					took = append(took, float64(last.Sub(stage.At.AsTime()).Microseconds())/1000)
				}
			}
		}
		if page.NextPageToken == "" {
			return took, nil
		}
		request.PageToken = page.NextPageToken
	}
}
