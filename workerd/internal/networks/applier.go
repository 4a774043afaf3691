package networks

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/network"
)

const (
	// applyTimeout bounds one Apply.
	applyTimeout = time.Minute
	// firstPause and longestPause bound the pauses after an Apply that failed, wholly or
	// for a network.
	firstPause   = 500 * time.Millisecond
	longestPause = 30 * time.Second
	// reattaching is how many tasks are attached again at the same time.
	reattaching = 8
)

// applier keeps one plugin informed. n.mu guards its fields.
type applier struct {
	n    *Networks
	name string
	// woken has room for one, and receives when there may be something to do.
	woken chan struct{}
	// healed has room for one, and receives when a network's error has gone.
	healed chan struct{}

	// current is the plugin as it was last described.
	current *network.Described
	pending pending
	// ready is the process that was told everything, if one was.
	ready network.Plugin
	// told are the networks that the process knows. errors says what is wrong with some of
	// them, and warnings what is wrong with something that belongs to them.
	told             map[string]bool
	errors, warnings map[string]string
	// applying are the networks in the Apply that is open.
	applying map[string]bool
	// failure is why the process was not told everything.
	failure error
}

func newApplier(n *Networks, name string) *applier {
	return &applier{
		n: n, name: name, woken: make(chan struct{}, 1), healed: make(chan struct{}, 1), pending: newPending(true),
		told: map[string]bool{}, errors: map[string]string{}, warnings: map[string]string{}, applying: map[string]bool{},
	}
}

// process returns the plugin's present process, if there is one and there is something to
// tell it: where this node is, at least.
func (a *applier) process() network.Plugin {
	a.n.mu.Lock()
	defer a.n.mu.Unlock()
	if !a.n.known || a.n.node.DataPathAddress == "" || a.current == nil {
		return nil
	}
	return a.current.Plugin
}

// healthyProcess is process for one that says that it can work. One that cannot, as
// without the rights for it, need not be told anything; one that no longer can continues.
func (a *applier) healthyProcess() network.Plugin {
	p := a.process()
	a.n.mu.Lock()
	defer a.n.mu.Unlock()
	if p == nil || a.current == nil || !a.current.Healthy() {
		return nil
	}
	return p
}

// run informs one process of the plugin after the other until ctx ends.
func (a *applier) run(ctx context.Context) {
	for ctx.Err() == nil {
		if p := a.healthyProcess(); p != nil {
			a.inform(ctx, p)
			continue
		}
		select {
		case <-a.woken:
		case <-ctx.Done():
		}
	}
}

// inform tells a process everything, and then what changes, until it is no longer the
// plugin's present one.
func (a *applier) inform(ctx context.Context, p network.Plugin) {
	ctx, cancel := context.WithCancel(ctx)
	var others sync.WaitGroup
	defer others.Wait()
	defer cancel()
	a.n.mu.Lock()
	a.pending.complete = true
	a.n.mu.Unlock()
	pauses := backoff.New(firstPause, longestPause)
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	paused, informed, armed := false, false, false
	for ctx.Err() == nil && a.process() == p {
		if !paused {
			switch done, ok := a.apply(ctx, p); {
			case !ok:
				paused = true
				fallthrough
			case done && a.wrong():
				if !armed {
					armed = true
					retry.Reset(pauses.Next())
				}
			case done:
				pauses.Reset()
			}
			if !paused && !informed {
				informed = true
				// Tasks get addresses that leftovers of another worker may still have.
				a.sweep(ctx, p)
				a.n.markReady(a, p)
				others.Go(func() { a.reattach(ctx, p) })
			}
		}
		select {
		case <-a.woken:
		case <-retry.C:
			paused, armed = false, false
			a.n.mu.Lock()
			a.pending.complete = a.pending.complete || len(a.errors)+len(a.warnings) > 0
			a.n.mu.Unlock()
		case <-sweep.C:
			if informed {
				others.Go(func() { a.sweep(ctx, p) })
			}
		case <-ctx.Done():
		}
	}
	a.n.markReady(a, nil)
}

// wrong reports whether something is wrong with a network, or was left out of one.
func (a *applier) wrong() bool {
	a.n.mu.Lock()
	defer a.n.mu.Unlock()
	return len(a.errors)+len(a.warnings) > 0
}

// apply tells a process what it has not been told, and whether there was something. After
// an error, the process is told everything.
func (a *applier) apply(ctx context.Context, p network.Plugin) (done, ok bool) {
	a.n.mu.Lock()
	change, networks := a.take()
	a.n.applied = a.n.applied || len(networks) > 0
	before := a.failure
	a.n.mu.Unlock()
	if change.Empty() {
		return false, true
	}
	began := time.Now()
	applied, err := within(ctx, a.name, applyTimeout, func(ctx context.Context) (*network.Applied, error) { return p.Apply(ctx, change) })
	described := func() {}
	defer func() { described() }()
	a.n.mu.Lock()
	defer a.n.mu.Unlock()
	defer a.n.announce()
	clear(a.applying)
	if ctx.Err() != nil {
		a.pending.complete = true
		return true, false
	}
	a.n.metrics.applied(a.name, err, time.Since(began))
	a.failure = err
	if err != nil {
		a.pending.complete = true
		if before == nil || before.Error() != err.Error() {
			a.n.log.Error("failed to apply networks; retrying", zap.String("plugin", a.name), zap.Error(err))
		}
		return true, false
	}
	for _, id := range networks {
		a.told[id] = true
		if applied.Failed[id] == "" && a.errors[id] != "" {
			delete(a.errors, id)
			notify(a.healed)
		}
	}
	was := a.problem()
	if change.Complete {
		maps.DeleteFunc(a.warnings, func(id, _ string) bool { return applied.Warnings[id] == "" })
	}
	a.note(a.errors, applied.Failed, "network does not work on this node; retrying")
	a.note(a.warnings, applied.Warnings, "part of a network does not work on this node; retrying")
	if a.problem() != was && a.n.cfg.Described != nil {
		described = a.n.cfg.Described
	}
	return true, true
}

// problem says what is wrong with a network, and with how many others something is. The
// caller holds n.mu.
func (a *applier) problem() string {
	var all []string
	for _, texts := range []map[string]string{a.errors, a.warnings} {
		for _, id := range sortedKeys(texts) {
			all = append(all, fmt.Sprintf("network %s: %s", nameOf(a.n.networks[id], id), texts[id]))
		}
	}
	switch len(all) {
	case 0:
		return ""
	case 1:
		return all[0]
	}
	return fmt.Sprintf("%s (and %d more)", all[0], len(all)-1)
}

// note takes in what is wrong, and logs what is new. The caller holds n.mu.
func (a *applier) note(known, now map[string]string, message string) {
	for id, why := range now {
		if known[id] != why {
			a.n.log.Error(message, zap.String("plugin", a.name), zap.String("network", id), zap.String("error", why))
		}
		known[id] = why
	}
}

// reattach attaches the tasks of a plugin again, of which its new process knows nothing.
// Those that fail are tried again until the process ends.
func (a *applier) reattach(ctx context.Context, p network.Plugin) {
	pauses := backoff.New(firstPause, longestPause)
	failed := map[string]string{}
	for ids := a.n.attachedTo(a.name); ; ids = sortedKeys(failed) {
		a.reattachOnce(ctx, p, ids, failed)
		if len(failed) == 0 {
			return
		}
		select {
		case <-time.After(pauses.Next()):
		case <-a.healed:
			pauses.Reset()
		case <-ctx.Done():
			return
		}
	}
}

// reattachOnce tries to attach tasks again, and notes why it failed for some. What failed
// for the same reason before is not logged again.
func (a *applier) reattachOnce(ctx context.Context, p network.Plugin, ids []string, failed map[string]string) {
	slots := make(chan struct{}, reattaching)
	var (
		calls sync.WaitGroup
		mu    sync.Mutex
	)
	defer calls.Wait()
	for _, id := range ids {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		calls.Go(func() {
			defer func() { <-slots }()
			err := a.n.reattach(ctx, a.name, id, p)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				delete(failed, id)
				return
			}
			if ctx.Err() == nil && failed[id] != err.Error() {
				a.n.log.Error("failed to attach a task again; retrying", zap.String("plugin", a.name), zap.String("task", id), zap.Error(err))
			}
			failed[id] = err.Error()
		})
	}
}

// sweep detaches the tasks that a plugin holds something of and that the worker has not
// attached.
func (a *applier) sweep(ctx context.Context, p network.Plugin) {
	inner, cancel := context.WithTimeout(ctx, quickCall)
	defer cancel()
	held, err := p.List(inner, a.n.cfg.NodeID)
	if err != nil {
		if ctx.Err() == nil {
			a.n.log.Warn("failed to list the tasks of a network plugin", zap.String("plugin", a.name), zap.Error(err))
		}
		return
	}
	for _, id := range held {
		if err := a.n.detachUnknown(inner, a.name, id, p); err != nil && ctx.Err() == nil {
			a.n.log.Warn("failed to detach a task that this worker has not attached", zap.String("plugin", a.name), zap.String("task", id), zap.Error(err))
		}
	}
}

// isTold reports whether the process was told what a network consists of now. The caller
// holds n.mu.
func (a *applier) isTold(id string) bool {
	return a.told[id] && !a.pending.complete && !a.pending.networks[id] && !a.applying[id]
}

// SetPlugins tells which plugins there are and how they are.
func (n *Networks) SetPlugins(all []*network.Described) {
	n.mu.Lock()
	defer n.mu.Unlock()
	defer n.wake()
	n.described = true
	seen := map[string]bool{}
	for _, d := range all {
		seen[d.Name] = true
		a := n.appliers[d.Name]
		if a == nil {
			a = newApplier(n, d.Name)
			n.appliers[d.Name] = a
			n.spawn(a.run)
		}
		if a.current == nil || !slices.Equal(a.current.Description.GetDrivers(), d.Description.GetDrivers()) {
			a.pending.complete = true
		}
		a.current = d
	}
	for _, name := range slices.Collect(maps.Keys(n.appliers)) {
		if !seen[name] {
			n.appliers[name].current = nil
		}
	}
	n.takeKey(all)
}

// markReady notes which process of a plugin was told everything.
func (n *Networks) markReady(a *applier, p network.Plugin) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a.ready = p
	n.announce()
}

// wake has all appliers look for something to do, and the saver too.
func (n *Networks) wake() {
	for _, a := range n.appliers {
		notify(a.woken)
	}
	notify(n.unsaved)
	n.announce()
}

// announce wakes everything that waits for a change. The caller holds n.mu.
func (n *Networks) announce() {
	if n.waiting > 0 {
		close(n.changed)
		n.changed, n.waiting = make(chan struct{}), 0
	}
}

// await returns a channel that is closed at the next change. The caller holds n.mu.
func (n *Networks) await() <-chan struct{} {
	n.waiting++
	return n.changed
}

func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// unavailable is the error of a plugin that cannot be called now.
func unavailable(format string, args ...any) error {
	return &executor.Error{Temporary: true, BlameNode: true, Err: fmt.Errorf(format, args...)}
}
