package workerd

import (
	"context"
	"errors"
	"fmt"
)

// job is a part of the worker that runs as long as the worker does.
type job struct {
	name string
	run  func(context.Context) error
}

// runInOrder runs jobs until ctx ends or one of them ends. Then it ends them
// one after the other, the last first, so that none misses what it stands on:
// the session says goodbye while the tasks are still looked after, and the
// tasks let go of their plugins before these are stopped.
func runInOrder(ctx context.Context, jobs []job) error {
	type running struct {
		cancel context.CancelFunc
		done   chan struct{}
		err    error
	}
	ending, stop := context.WithCancel(ctx)
	defer stop()
	all := make([]*running, len(jobs))
	for i, j := range jobs {
		inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
		r := &running{cancel: cancel, done: make(chan struct{})}
		all[i] = r
		go func() {
			defer close(r.done)
			defer stop()
			if err := j.run(inner); err != nil && inner.Err() == nil {
				r.err = fmt.Errorf("%s: %w", j.name, err)
			}
		}()
	}
	<-ending.Done()
	var errs []error
	for i := len(all) - 1; i >= 0; i-- {
		all[i].cancel()
		<-all[i].done
		errs = append(errs, all[i].err)
	}
	return errors.Join(errs...)
}
