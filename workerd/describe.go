package workerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/machine"
	"github.com/musterhq/muster/workerd/internal/networks"
)

const (
	// describeTimeout is how long executors may take to say what they are.
	describeTimeout = 10 * time.Second
	// firstDescription is the same at the start of the worker, whose hello waits
	// for it: a node that is READY runs what it says. One that is
	// not up by then is reported when it is.
	firstDescription = 8 * time.Second
	// firstDescriptionWithTasks is the same for a worker that has tasks to answer
	// for. Were it away for longer, it would be taken for dead and they for lost.
	firstDescriptionWithTasks = 2 * time.Second
)

// MachineID returns an id of this machine that is the same for all its workers; empty
// if it cannot be found out. Workers in different network namespaces, as those of
// containers, are on different machines: they have ports of their own. What counts is the
// namespace of the given process; 0 is this process. It fails if the other process cannot
// be looked at.
func MachineID(pid int) (string, error) {
	if pid == 0 {
		return machine.ID("self"), nil
	}
	process := strconv.Itoa(pid)
	if _, err := os.Stat(filepath.Join("/proc", process, "ns/net")); err != nil {
		return "", fmt.Errorf("find the machine's network: %w: give the container the processes of the machine (pid: host) and the capability SYS_PTRACE", err)
	}
	return machine.ID(process), nil
}

// describer knows what the node is, and reports when that changes.
type describer struct {
	describerConfig
	// first is closed when the executors were asked for the first time.
	first chan struct{}
	// withheld says by name which executors exceed a limit, and why. Only run uses it.
	withheld map[string]string
	// all are the executors as they were last described. Only run uses it.
	all []*executor.Described

	mu      sync.Mutex
	current *musterv1.NodeDescription
	changed chan struct{}
}

// describerConfig is what a describer needs.
type describerConfig struct {
	// base is the node without its executors.
	base     *musterv1.NodeDescription
	interval time.Duration
	// patience is the time that executors get for their first answer.
	patience  time.Duration
	executors executor.Set
	// networks adds the network plugins, and described receives when they have changed.
	networks  *networks.Networks
	described <-chan struct{}
	// disk is nil if nothing is kept.
	disk *disk
	// files is true if tasks can have secrets and configs.
	files bool
	// listener is called with the executors each time they were asked.
	listener func([]*executor.Described)
	log      *zap.Logger
}

// newDescriber returns a describer that knows of no executors yet.
func newDescriber(cfg describerConfig) *describer {
	return &describer{describerConfig: cfg, first: make(chan struct{}), current: cfg.base, changed: make(chan struct{})}
}

// describe returns the description of the node without its executors.
func (w *Worker) describe(ctx context.Context) (*musterv1.NodeDescription, error) {
	hostname := w.cfg.Hostname
	if hostname == "" {
		var err error
		if hostname, err = machine.Hostname(); err != nil {
			return nil, err
		}
	}
	resources, shared := &musterv1.Resources{}, &musterv1.Resources{}
	if w.cfg.Resources != nil {
		resources = proto.CloneOf(w.cfg.Resources)
	}
	if resources.GetNanoCpus() == 0 || resources.GetMemoryBytes() == 0 {
		has, err := machine.Resources(ctx)
		if err != nil {
			return nil, err
		}
		if resources.GetNanoCpus() == 0 {
			resources.NanoCpus, shared.NanoCpus = has.GetNanoCpus(), has.GetNanoCpus()
		}
		if resources.GetMemoryBytes() == 0 {
			resources.MemoryBytes, shared.MemoryBytes = has.GetMemoryBytes(), has.GetMemoryBytes()
		}
	}
	node := &musterv1.NodeDescription{
		Hostname: hostname, Platform: machine.Platform(), Resources: resources, Labels: w.cfg.Labels, Version: w.env.Version,
	}
	if w.cfg.Machine != "" {
		node.Machine = &musterv1.Machine{Id: w.cfg.Machine, Shared: shared}
	}
	return node, nil
}

// Description returns the node as it is now, and a channel that is closed when
// that has changed. It is the same pointer until something has.
func (d *describer) Description() (*musterv1.NodeDescription, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.current, d.changed
}

// await returns when the executors have been asked.
func (d *describer) await(ctx context.Context) {
	select {
	case <-d.first:
	case <-ctx.Done():
	}
}

// run asks the executors what they are, from time to time and when they say
// that something changed, until ctx ends.
func (d *describer) run(ctx context.Context) error {
	tick := time.NewTicker(d.interval)
	defer tick.Stop()
	var disk <-chan struct{}
	if d.disk != nil {
		disk = d.disk.changed
	}
	inner, cancel := context.WithTimeout(ctx, d.patience)
	d.ask(ctx, d.patience)
	d.networks.Await(inner)
	cancel()
	d.compose(ctx)
	d.tellUnknown(ctx)
	close(d.first)
	for {
		select {
		case <-tick.C:
		case <-d.executors.Changes():
		case <-d.described:
			d.compose(ctx)
			continue
		case <-disk:
		case <-ctx.Done():
			return ctx.Err()
		}
		d.ask(ctx, describeTimeout)
	}
}

// tellUnknown tells of executors that did not say in time what they run: for now
// the node knows only their names.
func (d *describer) tellUnknown(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	node, _ := d.Description()
	if len(node.GetExecutors()) == 0 {
		d.log.Warn("no executor was found; the node joins without any")
	}
	for _, e := range node.GetExecutors() {
		if len(e.GetKinds()) == 0 && d.withheld[e.GetName()] == "" {
			d.log.Warn("executor has not said what it runs; the node joins without it",
				zap.String("executor", e.GetName()), zap.String("why", e.GetMessage()), zap.Duration("waited_at_most", d.patience))
		}
	}
}

// ask asks all executors once.
func (d *describer) ask(ctx context.Context, limit time.Duration) {
	inner, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	d.all = d.executors.Describe(inner)
	d.compose(ctx)
	if ctx.Err() == nil {
		d.listener(d.all)
	}
}

// compose makes the description of the node of what is known now.
func (d *describer) compose(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	mark := func(e *musterv1.ExecutorDescription) {
		if d.disk != nil {
			d.disk.mark(e)
		}
		if !d.files {
			withoutFiles(e)
		}
	}
	base := proto.CloneOf(d.base)
	d.networks.Describe(base)
	node, withheld := assemble(base, d.all, mark)
	for name, why := range withheld {
		if d.withheld[name] != why {
			d.log.Warn("executor exceeds a limit and is not reported", zap.String("executor", name), zap.String("why", why))
		}
	}
	d.withheld = withheld
	d.mu.Lock()
	defer d.mu.Unlock()
	if !proto.Equal(node, d.current) {
		d.current = node
		close(d.changed)
		d.changed = make(chan struct{})
	}
}
