package networks

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/network"
)

const (
	// patience is how long a task waits for an address or for a plugin before its status
	// says so.
	patience = 5 * time.Second
	// attachTimeout bounds one Attach.
	attachTimeout = time.Minute

	maxDrivers = nodereport.MaxNetworkDrivers
)

// task is a task that has addresses, or that a plugin may hold something of.
type task struct {
	attachments []network.Attachment
	// plugin is the name of the plugin that serves the task's networks.
	plugin string
	// attached is what the plugin was told last. It is nil until it was told anything.
	attached *network.Task
	// ended says that the task must not be attached again.
	ended bool
}

// Reserve gives a task addresses on networks, without calling a plugin, and returns them
// with the name of the plugin that serves the networks. A task that has addresses keeps
// them. Reserve waits for a moment for a network without a free address.
func (n *Networks) Reserve(ctx context.Context, id string, wanted []network.Attachment) ([]network.Attachment, string, error) {
	var limit *time.Timer
	for {
		n.mu.Lock()
		t, err := n.reserve(id, wanted)
		if err == nil || !executor.ErrorOf(err).Temporary {
			n.mu.Unlock()
			if err != nil {
				return nil, "", err
			}
			return t.attachments, t.plugin, nil
		}
		changed := n.await()
		n.mu.Unlock()
		if limit == nil {
			limit = time.NewTimer(patience)
			defer limit.Stop()
		}
		select {
		case <-changed:
		case <-limit.C:
			return nil, "", err
		case <-ctx.Done():
			return nil, "", ctx.Err()
		}
	}
}

// reserve makes one attempt. The caller holds n.mu.
func (n *Networks) reserve(id string, wanted []network.Attachment) (*task, error) {
	if t := n.tasks[id]; t != nil {
		return t, nil
	}
	plugin, err := n.pluginOf(wanted)
	if err != nil {
		return nil, err
	}
	t := &task{plugin: plugin}
	for _, at := range wanted {
		e := n.networks[at.NetworkID]
		at.Addresses = nil
		if len(e.object.GetSubnets()) > 0 {
			addresses := e.pool.give(id)
			if addresses == nil {
				n.free(id, t.attachments)
				return nil, unavailable("network %s has no free address on this node", nameOf(e, at.NetworkID))
			}
			at.Addresses = format(addresses)
		}
		t.attachments = append(t.attachments, at)
	}
	n.tasks[id] = t
	return t, nil
}

// pluginOf returns the name of the plugin that serves networks. The caller holds n.mu.
func (n *Networks) pluginOf(wanted []network.Attachment) (string, error) {
	plugin, first := "", ""
	for _, at := range wanted {
		e := n.networks[at.NetworkID]
		if e == nil || e.object == nil {
			return "", unavailable("network %s was not sent to this node", at.NetworkID)
		}
		name := n.serving(e.object.GetDriver())
		switch {
		case name == "" && n.pluginsUnknown():
			return "", unavailable("network plugins have not said yet what they are")
		case name == "":
			return "", &executor.Error{Code: codes.FailedPrecondition, BlameNode: true, Err: fmt.Errorf(
				"no network plugin on this node serves the driver %q of network %s", e.object.GetDriver(), nameOf(e, at.NetworkID))}
		case plugin != "" && plugin != name:
			return "", &executor.Error{Code: codes.InvalidArgument, Err: fmt.Errorf(
				"networks %s and %s are served by different plugins, %s and %s: attach the service to networks of one plugin",
				first, nameOf(e, at.NetworkID), plugin, name)}
		}
		plugin, first = name, nameOf(e, at.NetworkID)
	}
	return plugin, nil
}

// pluginsUnknown reports whether a plugin has not said yet which drivers it serves. The
// caller holds n.mu.
func (n *Networks) pluginsUnknown() bool {
	for _, a := range n.appliers {
		if a.current != nil && !a.current.Healthy() && len(a.current.Description.GetDrivers()) == 0 {
			return true
		}
	}
	return !n.described
}

// serving returns the name of a plugin that serves a driver, the first one by name; empty
// if there is none. The caller holds n.mu.
func (n *Networks) serving(driver string) (first string) {
	for name, a := range n.appliers {
		if (first == "" || name < first) && a.current != nil && a.current.Serves(driver) {
			first = name
		}
	}
	return first
}

// nameOf returns what users call a network; its id if it is not known.
func nameOf(e *entry, id string) string {
	if e == nil || e.object.GetName() == "" {
		return id
	}
	return e.object.GetName()
}

// Restore takes in what was stored of a task: what its plugin was or was to be told. A task
// that has ended only waits to be detached.
func (n *Networks) Restore(plugin string, t *network.Task, ended bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tasks[t.ID] = &task{attachments: t.Attachments, plugin: plugin, attached: t, ended: ended}
	for _, at := range t.Attachments {
		n.entry(at.NetworkID).pool.take(t.ID, parse(at.Addresses))
	}
}

// Release frees the addresses of a task, which must be detached.
func (n *Networks) Release(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if t := n.tasks[id]; t != nil {
		delete(n.tasks, id)
		n.free(id, t.attachments)
		n.announce()
	}
}

// free frees addresses of a task. The caller holds n.mu.
func (n *Networks) free(id string, attachments []network.Attachment) {
	for _, at := range attachments {
		if e := n.networks[at.NetworkID]; e != nil {
			e.pool.free(id, parse(at.Addresses))
		}
	}
}

// Attach connects the network namespace of a task that has addresses to its networks, as
// soon as these have been applied.
func (n *Networks) Attach(ctx context.Context, t *network.Task) (*network.Attached, error) {
	n.mu.Lock()
	held := n.tasks[t.ID]
	n.mu.Unlock()
	if held == nil {
		return nil, fmt.Errorf("task %s has no addresses", t.ID)
	}
	p, err := n.ready(ctx, held)
	if err != nil {
		return nil, err
	}
	done, err := n.begin(ctx, t.ID)
	if err != nil {
		return nil, err
	}
	defer done()
	n.mu.Lock()
	if err := n.checkBlocks(held); err != nil {
		n.mu.Unlock()
		return nil, err
	}
	held.attached = t
	n.mu.Unlock()
	return within(ctx, held.plugin, attachTimeout, func(ctx context.Context) (*network.Attached, error) { return p.Attach(ctx, t) })
}

// checkBlocks fails if a task that was never attached has addresses that the node no
// longer has. A dispatcher can see a task before it sees that the node returned the block
// that it had for earlier tasks. The caller holds n.mu.
func (n *Networks) checkBlocks(t *task) error {
	if t.attached != nil {
		return nil
	}
	for _, at := range t.attachments {
		e := n.networks[at.NetworkID]
		if e == nil || len(at.Addresses) == 0 || len(e.object.GetSubnets()) == 0 || e.pool.within(parse(at.Addresses)) {
			continue
		}
		return &executor.Error{Code: codes.FailedPrecondition, Err: fmt.Errorf(
			"network %s gave the task an address in a block that this node has returned since", nameOf(e, at.NetworkID))}
	}
	return nil
}

// ready returns the process of a task's plugin that was told of the task's networks. It
// waits for a moment for one.
func (n *Networks) ready(ctx context.Context, t *task) (network.Plugin, error) {
	var limit *time.Timer
	for {
		n.mu.Lock()
		p, err := n.readyNow(t)
		if p != nil {
			n.mu.Unlock()
			return p, nil
		}
		changed := n.await()
		n.mu.Unlock()
		if limit == nil {
			limit = time.NewTimer(patience)
			defer limit.Stop()
		}
		select {
		case <-changed:
		case <-limit.C:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// readyNow is ready without waiting. The caller holds n.mu.
func (n *Networks) readyNow(t *task) (network.Plugin, error) {
	a := n.appliers[t.plugin]
	switch {
	case (a == nil || a.current == nil) && n.described:
		return nil, &executor.Error{
			Code: codes.FailedPrecondition, Temporary: true, BlameNode: true, Absent: true,
			Err: fmt.Errorf("network plugin %s is no longer on this node", t.plugin),
		}
	case a == nil:
		return nil, unavailable("network plugins have not said yet what they are")
	case a.ready == nil && a.failure != nil:
		return nil, a.failure
	case a.ready == nil:
		why := a.current.Description.GetMessage()
		switch {
		case a.current.Plugin != nil && a.current.Healthy():
			why = "it has not set up the node's networks yet"
		case why == "":
			why = "it does not run"
		}
		return nil, unavailable("network plugin %s is not ready: %s", t.plugin, why)
	}
	for _, at := range t.attachments {
		if why := a.errors[at.NetworkID]; why != "" {
			return nil, unavailable("network %s: %s", nameOf(n.networks[at.NetworkID], at.NetworkID), why)
		}
		if !a.isTold(at.NetworkID) {
			return nil, unavailable("network plugin %s has not set up network %s yet", t.plugin, nameOf(n.networks[at.NetworkID], at.NetworkID))
		}
	}
	return a.ready, nil
}

// Detach undoes what Attach did. A task that was never attached needs no call.
func (n *Networks) Detach(ctx context.Context, id string) error {
	n.mu.Lock()
	held := n.tasks[id]
	if held == nil || held.attached == nil {
		n.mu.Unlock()
		return nil
	}
	// What is wrong with a network does not matter now.
	bare := &task{plugin: held.plugin}
	n.mu.Unlock()
	p, err := n.ready(ctx, bare)
	if err != nil {
		return err
	}
	done, err := n.begin(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	_, err = within(ctx, held.plugin, quickCall, func(ctx context.Context) (struct{}, error) { return struct{}{}, p.Detach(ctx, id) })
	if err != nil {
		return err
	}
	n.mu.Lock()
	held.attached = nil
	n.mu.Unlock()
	return nil
}

// Told reports whether a plugin was told of a task what it would be told now.
func (n *Networks) Told(t *network.Task) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	held := n.tasks[t.ID]
	if held == nil || held.attached == nil {
		return false
	}
	told := held.attached
	return told.Name == t.Name && told.ServiceName == t.ServiceName && told.Namespace == t.Namespace &&
		slices.EqualFunc(told.Ports, t.Ports, func(a, b *musterv1.PortConfig) bool { return proto.Equal(a, b) })
}

// begin waits until no call for a task is open, and returns the function that ends the
// caller's.
func (n *Networks) begin(ctx context.Context, id string) (done func(), err error) {
	for {
		n.mu.Lock()
		other := n.calling[id]
		if other == nil {
			mine := make(chan struct{})
			n.calling[id] = mine
			n.mu.Unlock()
			return func() {
				n.mu.Lock()
				defer n.mu.Unlock()
				delete(n.calling, id)
				close(mine)
			}, nil
		}
		n.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// attachedTo returns the tasks that a plugin was told of.
func (n *Networks) attachedTo(plugin string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var ids []string
	for id, t := range n.tasks {
		if t.plugin == plugin && t.attached != nil && !t.ended {
			ids = append(ids, id)
		}
	}
	return ids
}

// reattach tells a process of a task that an earlier process was told of, unless it has
// been detached meanwhile.
func (n *Networks) reattach(ctx context.Context, plugin, id string, p network.Plugin) error {
	done, err := n.begin(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	n.mu.Lock()
	t := n.tasks[id]
	var told *network.Task
	if t != nil && t.plugin == plugin {
		told = t.attached
	}
	n.mu.Unlock()
	if told == nil {
		return nil
	}
	_, err = within(ctx, plugin, attachTimeout, func(ctx context.Context) (*network.Attached, error) { return p.Attach(ctx, told) })
	return err
}

// detachUnknown has a process detach a task that the worker does not know to be attached. A
// worker that has lost its records attaches its tasks afresh, with other addresses.
func (n *Networks) detachUnknown(ctx context.Context, plugin, id string, p network.Plugin) error {
	done, err := n.begin(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	n.mu.Lock()
	t := n.tasks[id]
	known := t != nil && t.attached != nil
	n.mu.Unlock()
	if known {
		return nil
	}
	n.log.Warn("detaching a task that this worker has not attached", taskField(id))
	_, err = within(ctx, plugin, quickCall, func(ctx context.Context) (struct{}, error) { return struct{}{}, p.Detach(ctx, id) })
	return err
}

// within makes a call to a plugin that has a deadline of its own. Errors of the call say
// which plugin they are of.
func within[T any](ctx context.Context, plugin string, limit time.Duration, call func(context.Context) (T, error)) (T, error) {
	inner, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	res, err := call(inner)
	if err != nil && inner.Err() != nil && ctx.Err() == nil {
		err = &executor.Error{Code: codes.DeadlineExceeded, Temporary: true, BlameNode: true, Err: fmt.Errorf("network plugin %s: no answer within %s", plugin, limit)}
	}
	return res, err
}

func sortedKeys[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }
