package daemon

import (
	"context"
	"slices"
)

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
