package workerd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/network"
)

const (
	// sweepCall bounds each call to an executor during a sweep.
	sweepCall = 10 * time.Second
	// sweepPause lies between two passes of a sweep. A task whose start was under
	// way when the worker died shows up in the second.
	sweepPause = 500 * time.Millisecond
)

// Sweep ends and removes all tasks that the executors of a worker hold, and the networks
// that its network plugins have set up. The worker must have ended, and must not start
// again before Sweep has returned. It returns when nothing is left, or when ctx ends; its
// error then says what is left.
func Sweep(ctx context.Context, env Env, cfg Config) (err error) {
	w := &Worker{env: env, cfg: cfg, log: env.Logger}
	node, err := w.cfg.EnsureNodeID()
	if err != nil {
		return err
	}
	store, _, err := w.open(w.log)
	if err != nil {
		return err
	}
	if store != nil {
		defer func() { err = errors.Join(err, store.Close()) }()
	}
	executors, plugins := w.env.Executors, w.env.Networks
	if executors == nil {
		host, err := w.plugins(w.log)
		if err != nil {
			return err
		}
		executors, plugins = host, host.Networks()
		hosting, stop := context.WithCancel(ctx)
		var hosted sync.WaitGroup
		hosted.Go(func() {
			if err := host.Run(hosting); err != nil && hosting.Err() == nil {
				w.log.Error("failed to run executor plugins", zap.Error(err))
			}
		})
		defer hosted.Wait()
		defer stop()
	}
	pause := time.NewTicker(sweepPause)
	defer pause.Stop()
	for clean := 0; ; {
		found, err := sweepOnce(ctx, executors, node)
		if plugins != nil {
			// Network plugins keep the namespaces of tasks, which have ended by now.
			err = errors.Join(err, sweepNetworks(ctx, plugins, node))
		}
		if err != nil || found {
			clean = 0
		} else if clean++; clean == 2 {
			if taskFiles := w.openFiles(node, w.log); taskFiles != nil {
				return taskFiles.Close()
			}
			return nil
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("tasks or networks may be left: %w", context.Cause(ctx)), err)
		}
	}
}

// sweepOnce removes what the executors hold now, and reports whether that was
// anything. An executor that cannot work is left out: it holds nothing that it
// could remove.
func sweepOnce(ctx context.Context, executors executor.Set, node string) (found bool, err error) {
	asking, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	var failed []error
	for _, e := range executors.Describe(asking) {
		if e.Executor == nil || e.Description.GetHealth() != musterv1.ExecutorDescription_HEALTHY {
			continue
		}
		n, err := removeHeld(ctx, e.Executor, node)
		if err != nil {
			failed = append(failed, fmt.Errorf("executor %s: %w", e.Name, err))
		}
		found = found || n > 0
	}
	return found, errors.Join(failed...)
}

// sweepNetworks removes everything that the network plugins have set up.
func sweepNetworks(ctx context.Context, plugins network.Set, node string) error {
	asking, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	var failed []error
	for _, d := range plugins.Describe(asking) {
		if d.Plugin == nil || !d.Healthy() {
			continue
		}
		if err := clearNetworks(ctx, d.Plugin, node); err != nil {
			failed = append(failed, fmt.Errorf("network plugin %s: %w", d.Name, err))
		}
	}
	return errors.Join(failed...)
}

// clearNetworks detaches all tasks of a node and removes its networks.
func clearNetworks(ctx context.Context, p network.Plugin, node string) error {
	ctx, cancel := context.WithTimeout(ctx, sweepCall)
	defer cancel()
	// The node has no networks any more. That comes first: a plugin detaches tasks
	// only once it was told what there is.
	if _, err := p.Apply(ctx, &network.Change{Complete: true, Node: network.Node{ID: node}}); err != nil {
		return fmt.Errorf("remove networks: %w", err)
	}
	attached, err := p.List(ctx, node)
	if err != nil {
		return fmt.Errorf("list tasks: %w", err)
	}
	var failed []error
	for _, id := range attached {
		if err := p.Detach(ctx, id); err != nil {
			failed = append(failed, fmt.Errorf("detach task %s: %w", id, err))
		}
	}
	return errors.Join(failed...)
}

// removeHeld removes all tasks of a node that an executor holds, and returns how
// many there were.
func removeHeld(ctx context.Context, e executor.Executor, node string) (int, error) {
	call := func(f func(ctx context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, sweepCall)
		defer cancel()
		return f(ctx)
	}
	var held []executor.Listed
	if err := call(func(ctx context.Context) (err error) {
		held, err = e.List(ctx, node)
		return err
	}); err != nil {
		return 0, fmt.Errorf("list tasks: %w", err)
	}
	var failed []error
	for _, t := range held {
		if err := call(func(ctx context.Context) error {
			_, err := e.Terminate(ctx, t.Ref)
			return err
		}); err != nil {
			failed = append(failed, fmt.Errorf("terminate task %s: %w", t.TaskID, err))
			continue
		}
		if err := call(func(ctx context.Context) error {
			return e.Remove(ctx, t.Ref)
		}); err != nil {
			failed = append(failed, fmt.Errorf("remove task %s: %w", t.TaskID, err))
		}
	}
	return len(held), errors.Join(failed...)
}
