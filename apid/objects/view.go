// Package objects holds the objects of the API in memory: services, tasks, nodes,
// networks, configs, secrets, stacks and the cluster, each joined from the records of its owners. It follows the
// store's snapshots, keeps what lists and counts need, and remembers the last
// changes of objects so that watches can continue where they stopped. It only
// reads.
//
// A joined object is immutable: a change makes another one. What a method
// returns may therefore be kept, and must not be changed.
package objects

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/btree"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// Source is the part of the store that a view reads.
type Source interface {
	Snapshot() *store.Snapshot
	Wait(ctx context.Context, after *store.Snapshot, tables ...store.TableDef) (*store.Snapshot, error)
}

// View is the objects as of the newest snapshot.
type View struct {
	source  Source
	tables  *state.Tables
	specs   Specs
	layout  *layout
	history *history

	mu       sync.RWMutex
	now      *store.Snapshot
	follower *state.Follower
	services btree.Map[string, *Service]
	// serviceIDs finds services by their folded name.
	serviceIDs map[string]string
	tasks      btree.Map[string, *Task]
	// serviceTasks holds the tasks' ids again, as "<service>/<task>".
	serviceTasks btree.Set[string]
	nodes        btree.Map[string, *Node]
	// paused are the nodes that an operator has paused.
	paused   map[string]struct{}
	cluster  *Cluster
	counts   map[string]*counts
	loads    map[string]*load
	configs  *Collection[*recordv1.Config]
	secrets  *Collection[*recordv1.Secret]
	stacks   *Collection[*recordv1.Stack]
	networks *networks
	// collections are those of all kinds that have one.
	collections []collection
	// nodesChanged counts the changes of nodes, for what is derived from them.
	nodesChanged uint64
	specUses     map[string]int
	// globals are the global services.
	globals map[string]struct{}
	// restarts are the services that restart with others.
	restarts restarts
}

// Specs opens the values of task specs.
type Specs interface {
	// OpenSpec returns the task spec of the record with key id.
	OpenSpec(id string, record *recordv1.Spec) (*musterv1.TaskSpec, error)
}

// New returns a view that has seen nothing yet. Remember bounds how many
// changes are kept for watches that resume.
func New(source Source, tables *state.Tables, specs Specs, remember int) *View {
	v := &View{
		source: source, tables: tables, specs: specs, history: newHistory(remember),
		follower: state.NewFollower(tables), serviceIDs: map[string]string{},
		counts: map[string]*counts{}, loads: map[string]*load{}, specUses: map[string]int{},
		globals: map[string]struct{}{}, paused: map[string]struct{}{}, cluster: defaultCluster(),
		configs: newCollection(configKind(tables)), secrets: newCollection(secretKind(tables)), stacks: newCollection(stackKind(tables)), networks: newNetworks(tables),
	}
	v.collections = []collection{v.configs, v.networks, v.secrets, v.stacks}
	counted := joined(tables)
	// Only a node's two tables together say whether it exists.
	presence := [][]sequenced{{tables.Services}, {tables.Tasks}, {tables.Nodes, tables.NodeStates}}
	for _, kind := range v.collections {
		counted = append(append(counted, kind.presence()), kind.joined()...)
		presence = append(presence, []sequenced{kind.presence()})
	}
	v.layout = newLayout(tables, counted, presence)
	return v
}

// Tables are those that the store must have open, and that objects are joined from.
func Tables(t *state.Tables) []store.TableDef {
	return []store.TableDef{
		t.Services, t.Specs, t.Nodes, t.Clusters, t.Tasks, t.Rollouts, t.Endpoints,
		t.Assignments, t.Placements, t.NodeStates, t.Statuses, t.Names, t.Configs, t.Secrets, t.Sealing, t.SealedBlobs, t.Blobs,
		t.Stacks, t.StackBlobs,
		t.Networks, t.NetworkStates, t.Blocks,
	}
}

// joined are the tables, besides those of collections, that objects are joined from.
func joined(t *state.Tables) []sequenced {
	return []sequenced{
		t.Services, t.Nodes, t.Clusters, t.Tasks, t.Rollouts, t.Endpoints, t.Assignments, t.Placements, t.NodeStates, t.Statuses,
	}
}

// Run follows the store until ctx ends. Reads do not need it, for they look
// at the newest snapshot themselves; watches do.
func (v *View) Run(ctx context.Context) error {
	tables := Tables(v.tables)
	var seen *store.Snapshot
	for {
		next, err := v.source.Wait(ctx, seen, tables...)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		}
		seen = next
		v.sync()
	}
}

// sync moves to the newest snapshot. So a client that has written something
// reads it back.
func (v *View) sync() {
	newest := v.source.Snapshot()
	v.mu.RLock()
	same := newest == v.now
	v.mu.RUnlock()
	if same {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	// Another reader may have come further meanwhile.
	if newest = v.source.Snapshot(); newest != v.now {
		v.advance(newest, time.Now())
	}
}

// Read calls fn with a reader of the newest objects. Fn must not block.
func (v *View) Read(fn func(r *Reader)) {
	v.sync()
	v.ReadSeen(fn)
}

// ReadSeen does it with the objects as they were seen last: all that watches have been
// told of, and perhaps not what was written a moment ago.
func (v *View) ReadSeen(fn func(r *Reader)) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	fn(&Reader{v: v, redacted: map[string]*musterv1.TaskSpec{}})
}

// Reader reads one moment of a view. It is valid during the call that it was
// given to.
type Reader struct {
	v        *View
	redacted map[string]*musterv1.TaskSpec
	// waited holds what services wait for, by id, as far as it was asked.
	waited map[string]string
	// sealedSpec is why a task spec could not be opened.
	sealedSpec error
	// lacksSpec is set once a task spec is asked for that has not been seen yet.
	lacksSpec bool
}

// LacksSpec reports whether a message of this reader lacks its task spec: the table of
// specs may be seen later than what refers to them.
func (r *Reader) LacksSpec() bool { return r.lacksSpec }

// SealedSpec returns why a message of this reader lacks its task spec although the spec is
// there: its values could not be opened. It is nil if none does.
func (r *Reader) SealedSpec() error { return r.sealedSpec }

// Past returns a reader for objects as they were. Their task specs may have been removed
// since, so LacksSpec of r does not count them.
func (r *Reader) Past() *Reader { return &Reader{v: r.v, redacted: r.redacted} }

// Services calls fn for each service in order of id, from an id on, until it
// returns false.
func (r *Reader) Services(from string, fn func(*Service) bool) {
	r.v.services.Ascend(from, func(_ string, s *Service) bool { return fn(s) })
}

// Tasks does the same for tasks.
func (r *Reader) Tasks(from string, fn func(*Task) bool) {
	r.v.tasks.Ascend(from, func(_ string, t *Task) bool { return fn(t) })
}

// ServiceTasks does the same for the tasks of one service.
func (r *Reader) ServiceTasks(service, from string, fn func(*Task) bool) {
	prefix := service + "/"
	r.v.serviceTasks.Ascend(prefix+from, func(key string) bool {
		id, ok := strings.CutPrefix(key, prefix)
		if !ok {
			return false
		}
		t, _ := r.v.tasks.Get(id)
		return fn(t)
	})
}

// Nodes does the same for nodes.
func (r *Reader) Nodes(from string, fn func(*Node) bool) {
	r.v.nodes.Ascend(from, func(_ string, n *Node) bool { return fn(n) })
}

// Service returns a service by id.
func (r *Reader) Service(id string) (*Service, bool) { return r.v.services.Get(id) }

// Task returns a task by id.
func (r *Reader) Task(id string) (*Task, bool) { return r.v.tasks.Get(id) }

// Node returns a node by id.
func (r *Reader) Node(id string) (*Node, bool) { return r.v.nodes.Get(id) }

// Cluster returns the cluster.
func (r *Reader) Cluster() *Cluster { return r.v.cluster }

// NodesChanged grows whenever a node changes.
func (r *Reader) NodesChanged() uint64 { return r.v.nodesChanged }

// SpecUsed reports whether a service or a task refers to a task spec.
func (r *Reader) SpecUsed(digest []byte) bool { return r.v.specUses[string(digest)] > 0 }
