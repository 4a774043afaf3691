package rig

import (
	"context"
	"errors"
	"fmt"
	"syscall"
)

// PowerLoss ends everything at once, as if all machines lost power: workers, plugins, the
// tasks' processes, managers, and Consul. It stops all of them first, so that none sees
// another die.
func (r *Rig) PowerLoss() error {
	var errs []error
	if r.Servers != nil {
		errs = append(errs, r.Servers.Pause())
	}
	for _, s := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		// The next round finds processes that were started during this one.
		for seen := map[int]bool{}; ; {
			all, err := r.Machine()
			if err != nil {
				return errors.Join(append(errs, err)...)
			}
			fresh := false
			for _, p := range all {
				if seen[p.PID] {
					continue
				}
				seen[p.PID], fresh = true, true
				if err := syscall.Kill(p.PID, s); err != nil && !errors.Is(err, syscall.ESRCH) {
					errs = append(errs, fmt.Errorf("%s: %w", p, err))
				}
			}
			if !fresh {
				break
			}
		}
	}
	if r.Servers != nil {
		errs = append(errs, r.Servers.Kill())
	}
	return errors.Join(errs...)
}

// PowerOn starts Consul, the managers and the workers again.
func (r *Rig) PowerOn(ctx context.Context) error {
	if err := r.StartAgain(ctx); err != nil {
		return err
	}
	for name := range r.Nodes {
		if err := r.StartNode(name); err != nil {
			return err
		}
	}
	return nil
}

// Dark returns an error while a process of the rig exists.
func (r *Rig) Dark(context.Context) error {
	all, err := r.Machine()
	if err != nil {
		return err
	}
	for _, p := range all {
		return fmt.Errorf("there is still %s", p)
	}
	return nil
}
