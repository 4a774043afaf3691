// Package logs brings the output of tasks to whoever asks: it finds the nodes
// that tasks run on and the dispatchers that own these nodes, subscribes there,
// and merges what comes into one stream. It keeps no output: a slow reader slows
// down the workers' sending, by gRPC's flow control all the way.
package logs

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/view"
	"github.com/musterhq/muster/internal/limit"
)

const (
	// buffered is how many lines of one request wait in memory.
	buffered = 64
	// parallel is how many nodes one request reads at a time, unless it follows
	// them.
	parallel = 64
	// settle is how long a follower waits after a change before it looks for new
	// tasks, so that a burst of changes is one look.
	settle = 100 * time.Millisecond
)

// Select names the tasks that a request is about. More is false once no others
// can come.
type Select func(r *view.Reader) (tasks []*view.Task, more bool)

// Broker reads logs from dispatchers.
type Broker struct {
	view  *view.View
	owner func(node string) (address string, ok bool)
	conns *pool
	log   *zap.Logger
}

// New returns a broker. Owner tells the address of the dispatcher that owns a
// node, and dial connects to it.
func New(v *view.View, owner func(node string) (string, bool), dial func(string) (*grpc.ClientConn, error), log *zap.Logger) *Broker {
	return &Broker{view: v, owner: owner, conns: newPool(dial), log: log}
}

// Run keeps the connections to dispatchers until ctx ends, and then closes
// them.
func (b *Broker) Run(ctx context.Context) error { return b.conns.run(ctx) }

// Stream sends the output of the selected tasks until it is complete or, if
// the options say follow, until no task is left and none can come. Where logs
// cannot be had a warning is sent in their place, and the rest still comes.
func (b *Broker) Stream(ctx context.Context, sel Select, opts *musterv1.LogOptions, send func(*musterv1.LogMessage) error) error {
	client := limit.ClientOf(ctx)
	ctx, cancel := context.WithCancel(ctx)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()

	out := make(chan *musterv1.LogMessage, buffered)
	ended := make(chan struct{})
	slots := make(chan struct{}, parallel)
	open := 0
	started := map[string]bool{}
	// look starts readers for tasks that have none yet.
	look := func() (more bool) {
		var found []*nodeReader
		found, more = b.find(sel, client, opts, started)
		for _, n := range found {
			open++
			readers.Go(func() {
				if !opts.GetFollow() {
					slots <- struct{}{}
					defer func() { <-slots }()
				}
				n.run(ctx, out)
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
	changed := b.changed(&cursor, opts)
	var again <-chan time.Time
	for open > 0 || (opts.GetFollow() && more) {
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
			changed = b.changed(&cursor, opts)
			more = look()
		}
	}
	// What readers left in the buffer comes before the end.
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

// changed returns a channel that is closed when tasks may have changed; nil,
// which is never, for a request that does not follow.
func (b *Broker) changed(cursor *view.Cursor, opts *musterv1.LogOptions) <-chan struct{} {
	if !opts.GetFollow() {
		return nil
	}
	next, changed := b.view.Changed(*cursor)
	*cursor = next
	return changed
}

// find groups the tasks that have a node and no reader yet by their nodes.
func (b *Broker) find(sel Select, client string, opts *musterv1.LogOptions, started map[string]bool) ([]*nodeReader, bool) {
	byNode := map[string]*nodeReader{}
	var list []*nodeReader
	var more bool
	b.view.Read(func(r *view.Reader) {
		var tasks []*view.Task
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
func nodeName(r *view.Reader, id string) (host, name string) {
	n, ok := r.Node(id)
	if !ok || n.Hostname() == "" {
		return "", id
	}
	return n.Hostname(), fmt.Sprintf("%s (%s)", n.Hostname(), id)
}
