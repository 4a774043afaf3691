package daemon

import (
	"context"
	"errors"
	"fmt"
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
