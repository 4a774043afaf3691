// Package logs brings the output of tasks to clients: it finds the nodes
// that tasks run on and the dispatchers that own these nodes, subscribes there,
// and merges what comes into one stream. It keeps no output: a slow reader slows
// down the workers' sending, by gRPC's flow control all the way.
package logs

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/limit"
	"github.com/musterhq/muster/internal/tasklog"
)

const (
	// buffered is how many lines of one request wait in memory.
	buffered = 64
	// parallel is how many nodes one request reads at a time, unless it follows
	// them. Lines are sorted among so many nodes.
	parallel = 64
	// patience is how long lines wait for earlier ones of a node that says nothing. It
	// is longer than that of workers, which sort the lines of their tasks.
	patience = 2 * time.Second
	// settle is how long a follower waits after a change before it looks for new
	// tasks, so that a burst of changes is one look.
	settle = 100 * time.Millisecond
)

// Select names the tasks that a request is about. More is false once no others
// can come.
type Select func(r *objects.Reader) (tasks []*objects.Task, more bool)

// Broker reads logs from dispatchers.
type Broker struct {
	view  *objects.View
	owner func(node string) (address string, ok bool)
	conns *pool
}

// New returns a broker. Owner tells the address of the dispatcher that owns a
// node, and dial connects to it.
func New(v *objects.View, owner func(node string) (string, bool), dial func(string) (*grpc.ClientConn, error)) *Broker {
	return &Broker{view: v, owner: owner, conns: newPool(dial)}
}

// Run keeps the connections to dispatchers until ctx ends, and then closes
// them.
func (b *Broker) Run(ctx context.Context) error { return b.conns.run(ctx) }

// Stream sends the output of the selected tasks until it is complete, with lines
// by time. If the options say follow, it sends lines as they come, until no task is
// left and none can come. Where logs cannot be had a warning is sent in their place,
// and the rest still comes.
func (b *Broker) Stream(ctx context.Context, sel Select, opts *musterv1.LogOptions, send func(*musterv1.LogMessage) error) error {
	client := limit.ClientOf(ctx)
	if opts.GetFollow() {
		return b.follow(ctx, sel, client, opts, send)
	}
	found, _ := b.find(sel, client, opts, map[string]bool{})
	var sources []tasklog.Source
	for _, n := range found {
		sources = append(sources, n.run)
	}
	return tasklog.Merge(ctx, sources, parallel, patience, send)
}

// follow sends lines as they come.
func (b *Broker) follow(ctx context.Context, sel Select, client string, opts *musterv1.LogOptions, send func(*musterv1.LogMessage) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()

	out := make(chan *musterv1.LogMessage, buffered)
	emit := func(m *musterv1.LogMessage) error {
		select {
		case out <- m:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	ended := make(chan struct{})
	open := 0
	started := map[string]bool{}
	// look starts readers for tasks that have none yet.
	look := func() (more bool) {
		var found []*nodeReader
		found, more = b.find(sel, client, opts, started)
		for _, n := range found {
			open++
			readers.Go(func() {
				// It only fails when the context ends.
				_ = n.run(ctx, emit)
				select {
				case ended <- struct{}{}:
				case <-ctx.Done():
				}
			})
		}
		return more
	}

	cursor, _ := b.view.Now()
	more := look()
	changed := b.changed(&cursor)
	var again <-chan time.Time
	for open > 0 || more {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case m := <-out:
			if err := send(m); err != nil {
				return err
			}
		case <-ended:
			open--
		case <-changed:
			changed = nil
			again = time.After(settle)
		case <-again:
			again = nil
			changed = b.changed(&cursor)
			more = look()
		}
	}
	return drain(out, send)
}

// drain sends what readers left in their buffer: it comes before the end.
func drain(out <-chan *musterv1.LogMessage, send func(*musterv1.LogMessage) error) error {
	for {
		select {
		case m := <-out:
			if err := send(m); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// changed returns a channel that is closed when tasks may have changed.
func (b *Broker) changed(cursor *objects.Cursor) <-chan struct{} {
	next, changed := b.view.Changed(*cursor)
	*cursor = next
	return changed
}

// find groups the tasks that have a node and no reader yet by their nodes.
func (b *Broker) find(sel Select, client string, opts *musterv1.LogOptions, started map[string]bool) ([]*nodeReader, bool) {
	byNode := map[string]*nodeReader{}
	var list []*nodeReader
	var more bool
	b.view.Read(func(r *objects.Reader) {
		var tasks []*objects.Task
		tasks, more = sel(r)
		for _, t := range tasks {
			if t.NodeID == "" || started[t.ID] {
				continue
			}
			started[t.ID] = true
			n := byNode[t.NodeID]
			if n == nil {
				n = &nodeReader{broker: b, client: client, node: t.NodeID, opts: opts, tasks: map[string]*source{}}
				n.host, n.name = nodeName(r, t.NodeID)
				byNode[t.NodeID] = n
				list = append(list, n)
			}
			n.tasks[t.ID] = &source{service: t.ServiceID, name: r.TaskSource(t)}
		}
	})
	return list, more
}

// nodeName returns a node's host name, "" if it has none, and what a warning calls
// the node.
func nodeName(r *objects.Reader, id string) (host, name string) {
	n, ok := r.Node(id)
	if !ok || n.Hostname() == "" {
		return "", id
	}
	return n.Hostname(), fmt.Sprintf("%s (%s)", n.Hostname(), id)
}
