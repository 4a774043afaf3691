package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Task is one of several functions that run concurrently.
type Task struct {
	// Name begins the task's errors, such as "serve gRPC". If it is empty, errors are
	// unchanged.
	Name string
	Run  func(context.Context) error
}

// RunTasks runs tasks until one fails, one ends, or ctx ends. Then it ends the others,
// waits for all, and returns the errors. The end of ctx is not an error.
func RunTasks(ctx context.Context, tasks ...Task) error {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(tasks))
	var wg sync.WaitGroup
	for i, t := range tasks {
		wg.Go(func() {
			defer cancel()
			err := t.Run(inner)
			if err == nil || inner.Err() != nil && (errors.Is(err, inner.Err()) || errors.Is(err, context.Cause(inner))) {
				return
			}
			if errs[i] = err; t.Name != "" {
				errs[i] = fmt.Errorf("%s: %w", t.Name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Runner runs the parts of a daemon in layers. A layer runs until the later layers, which
// need it, have ended. The store is in the first layer and the work in the last one, so
// that everything that the work writes at its end is committed.
type Runner [][]Task

// Run starts all layers and runs them until ctx ends or any task ends. Then it ends the
// last layer and waits for it, then the layer before, and so on. It returns the errors. The
// end of ctx is not an error.
func (r Runner) Run(ctx context.Context) error {
	if len(r) == 0 {
		return nil
	}
	if len(r) == 1 {
		return RunTasks(ctx, r[0]...)
	}
	later := Task{Run: func(layer context.Context) error {
		// It ends with ctx, or when a task of this layer ends.
		inner, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(layer, cancel)()
		return r[1:].Run(inner)
	}}
	return RunTasks(context.WithoutCancel(ctx), append(slices.Clip(r[0]), later)...)
}
