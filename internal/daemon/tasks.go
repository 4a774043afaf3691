package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Task is one of the things that a process does side by side.
type Task struct {
	// Name begins the task's errors: "serve gRPC". Empty: nothing does.
	Name string
	Run  func(context.Context) error
}

// RunTasks runs tasks until one fails, one ends, or ctx ends; then it ends the
// others, waits for all, and returns what failed. That ctx ended is no failure.
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

// Runner runs the parts of a daemon in layers. A layer keeps running until the
// layers after it have ended, because they need it to the last: the work is in
// the last layer, and the store in the first. Whatever the work writes when it
// ends is still committed.
type Runner [][]Task

// Run starts all layers and runs them until ctx ends or any task ends. Then it
// ends the last layer, waits for it, ends the layer before, and so on. It returns
// what failed. The end of ctx is no failure.
func (r Runner) Run(ctx context.Context) error {
	if len(r) == 0 {
		return nil
	}
	if len(r) == 1 {
		return RunTasks(ctx, r[0]...)
	}
	later := Task{Run: func(layer context.Context) error {
		// It ends with ctx, or when a task of this layer has ended.
		inner, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(layer, cancel)()
		return r[1:].Run(inner)
	}}
	return RunTasks(context.WithoutCancel(ctx), append(slices.Clip(r[0]), later)...)
}
