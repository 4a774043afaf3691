// Package networks connects the tasks of one worker to networks, through network plugins.
//
// A [Networks] keeps what the dispatcher said of the node's networks, in memory and, for
// a worker that starts again while no dispatcher answers, on the disk. For each plugin a
// goroutine tells the plugin's process everything and then what changes; at most one
// Apply is open per plugin, and says what is newest by then. Tasks reserve addresses in the
// node's blocks, are attached, detached, and release their addresses. What a plugin holds
// of tasks that the worker does not know is detached.
//
// The disk may be some seconds older than the kernel. A worker that starts again therefore
// tells plugins nothing until a dispatcher has said everything. What an earlier process
// has set up works meanwhile.
package networks

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/workerd/internal/bounds"
	"github.com/musterhq/muster/workerd/network"
)

const (
	// sweepEvery is how often plugins are asked which tasks they hold.
	sweepEvery = time.Minute
	// quickCall bounds the calls that should not take long.
	quickCall = time.Minute
	// describeTimeout is how long plugins may take to say what they are.
	describeTimeout = 10 * time.Second
	// saveLater is how long the store may lag behind what other nodes do. It is what a
	// worker begins with that starts again while no dispatcher answers.
	saveLater = 5 * time.Second
	// restoredWait is how long a worker that starts again leaves networks as they are in
	// the kernel, until it tells plugins what it has stored. A dispatcher that answers says
	// everything long before, also where executors are slow to say what they are.
	restoredWait = 15 * time.Second
)

// Store keeps networks beyond the end of the process.
type Store interface {
	// ApplyNetworks writes networks by id, and removes those that are nil.
	ApplyNetworks(networks map[string]*dispatcherv1.Assignments) error
}

// Config is what a Networks needs.
type Config struct {
	NodeID string
	// Plugins are the node's network plugins.
	Plugins network.Set
	// Interval is how often they are asked how they are.
	Interval time.Duration
	// Store may be nil: nothing is stored then.
	Store Store
	// DataPathAddress and DataPathPort are where other nodes send the traffic of networks
	// to. The address may be empty: see [Networks.SetAddress].
	DataPathAddress string
	DataPathPort    uint32
	// KeyFile keeps the node's public key for encrypted networks, which other nodes continue
	// to use while plugins start. Empty: it is kept in memory only.
	KeyFile string
	// Described is called when what the node reports of its network plugins may have
	// changed. It may be nil.
	Described func()
	Logger    *zap.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// Networks are the networks of one node.
type Networks struct {
	cfg     Config
	log     *zap.Logger
	metrics *metrics
	// unsaved has room for one, and receives when the store may lack something.
	unsaved chan struct{}
	// first is closed when the plugins were asked for the first time.
	first chan struct{}
	once  sync.Once

	// living guards the goroutines of Run.
	living sync.Mutex
	run    context.Context
	begun  []func(context.Context)
	wg     sync.WaitGroup

	mu   sync.Mutex
	node network.Node
	// session counts the sessions with dispatchers.
	session uint64
	// known is set once it is known which networks the node has: from a complete set, or
	// from the disk if no dispatcher answers.
	known bool
	// restored is set if the disk had all that the node had.
	restored bool
	// described is set once it is known which plugins the node has.
	described bool
	// key is the node's key for encrypted networks, as a plugin that ran last said.
	key key
	// applied is set once a plugin was told of a network.
	applied  bool
	networks map[string]*entry
	// gone are networks that the store may still have, and saveNow says that it must learn
	// of a network or of its end.
	gone     map[string]bool
	saveNow  bool
	tasks    map[string]*task
	appliers map[string]*applier
	// changed is closed at the next change if waiting is not 0.
	changed chan struct{}
	waiting int
	// calling are the tasks for which a call is open.
	calling map[string]chan struct{}
}

// New returns the networks of a node that has none.
func New(cfg Config) *Networks {
	return &Networks{
		cfg: cfg, log: cfg.Logger, key: readKey(cfg.KeyFile, cfg.Logger), metrics: newMetrics(cfg.Metrics),
		unsaved: make(chan struct{}, 1), first: make(chan struct{}),
		node:     network.Node{ID: cfg.NodeID, DataPathAddress: cfg.DataPathAddress, DataPathPort: cfg.DataPathPort},
		networks: map[string]*entry{}, gone: map[string]bool{}, tasks: map[string]*task{}, appliers: map[string]*applier{},
		changed: make(chan struct{}), calling: map[string]chan struct{}{},
	}
}

// Restored says that what the store had has been taken in, and that it is all that the
// node had. Plugins are told of it if no dispatcher has sent a complete set in the first
// moments of Run: what changed last is in the kernel, but may not be in the store. Where
// the store lacks a network that a task is on, the node's networks are known only when a
// dispatcher has said what they are.
func (n *Networks) Restored() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, t := range n.tasks {
		for _, at := range t.attachments {
			if e := n.networks[at.NetworkID]; e == nil || e.object == nil {
				return
			}
		}
	}
	n.restored = true
}

// trustStore has plugins be told what the store had, unless a dispatcher has sent a
// complete set by then.
func (n *Networks) trustStore(ctx context.Context) {
	select {
	case <-time.After(restoredWait):
	case <-ctx.Done():
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known = n.known || n.restored
	n.wake()
}

// Run keeps plugins informed until ctx ends. What they have set up stays.
func (n *Networks) Run(ctx context.Context) error {
	n.living.Lock()
	n.run = ctx
	begun := n.begun
	n.living.Unlock()
	for _, f := range begun {
		n.wg.Go(func() { f(ctx) })
	}
	n.wg.Go(func() { n.saveLoop(ctx) })
	n.wg.Go(func() { n.trustStore(ctx) })
	n.describeLoop(ctx)
	n.wg.Wait()
	return ctx.Err()
}

// spawn runs f in a goroutine that Run waits for, as soon as Run has begun.
func (n *Networks) spawn(f func(context.Context)) {
	n.living.Lock()
	defer n.living.Unlock()
	switch {
	case n.run == nil:
		n.begun = append(n.begun, f)
	case n.run.Err() == nil:
		n.wg.Go(func() { f(n.run) })
	}
}

// describeLoop asks the plugins what they are, from time to time and when they say that
// something changed.
func (n *Networks) describeLoop(ctx context.Context) {
	tick := time.NewTicker(n.cfg.Interval)
	defer tick.Stop()
	for {
		n.describe(ctx)
		n.once.Do(func() { close(n.first) })
		select {
		case <-tick.C:
		case <-n.cfg.Plugins.Changes():
		case <-ctx.Done():
			return
		}
	}
}

func (n *Networks) describe(ctx context.Context) {
	inner, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	all := n.cfg.Plugins.Describe(inner)
	if ctx.Err() != nil {
		return
	}
	n.SetPlugins(all)
	for _, d := range all {
		if d.Plugin == nil || !d.Can("stats") {
			continue
		}
		if stats, err := d.Plugin.Stats(inner); err == nil {
			n.metrics.stats(d.Name, stats)
		}
	}
	if n.cfg.Described != nil {
		n.cfg.Described()
	}
}

// Applied reports whether a plugin was ever told of a network, since when there may be
// something of it on the node.
func (n *Networks) Applied() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.applied
}

// Await returns when the plugins have been asked what they are, or ctx ends.
func (n *Networks) Await(ctx context.Context) {
	select {
	case <-n.first:
	case <-ctx.Done():
	}
}

// Describe adds the plugins to the description of the node, and where other nodes send the
// traffic of networks to.
func (n *Networks) Describe(node *musterv1.NodeDescription) {
	n.mu.Lock()
	defer n.mu.Unlock()
	path := &musterv1.DataPath{Address: n.node.DataPathAddress, Port: n.node.DataPathPort, PublicKey: n.key.Public, EncryptedPort: n.key.Port}
	for _, name := range sortedKeys(n.appliers) {
		if n.appliers[name].current != nil && len(node.NetworkDrivers) < maxDrivers {
			node.NetworkDrivers = append(node.NetworkDrivers, n.appliers[name].description())
		}
	}
	// Other nodes continue to send to a worker that has started again while its plugins start.
	starting := !n.described && len(n.networks) > 0
	if path.Address != "" && (len(node.NetworkDrivers) > 0 || starting) {
		node.DataPath = path
	}
}

// description returns what the node reports of a plugin: what the plugin says of itself,
// and what is wrong with its networks. The caller holds n.mu.
func (a *applier) description() *musterv1.NetworkDriverDescription {
	problem := a.problem()
	if problem == "" {
		return a.current.Description
	}
	d := proto.CloneOf(a.current.Description)
	if d.Message != "" {
		problem = d.Message + "; " + problem
	}
	d.Message = bounds.Text(problem, nodereport.MaxExecutorMessage)
	return d
}

// SetAddress tells the address of this node for other nodes. One that the settings name
// stays.
func (n *Networks) SetAddress(address netip.Addr) {
	if n.cfg.DataPathAddress != "" || !address.IsValid() {
		return
	}
	n.mu.Lock()
	changed := n.node.DataPathAddress != address.String()
	if changed {
		n.node.DataPathAddress = address.String()
		for _, a := range n.appliers {
			a.pending.complete = true
		}
		n.wake()
	}
	n.mu.Unlock()
	if changed && n.cfg.Described != nil {
		n.cfg.Described()
	}
}

// saveLoop writes to the store what it lacks: at once if it is about this node, and a
// moment later if it is about others.
func (n *Networks) saveLoop(ctx context.Context) {
	if n.cfg.Store == nil {
		return
	}
	for {
		select {
		case <-n.unsaved:
		case <-ctx.Done():
			n.save()
			return
		}
		n.mu.Lock()
		now := n.saveNow
		n.mu.Unlock()
		if !now {
			timer := time.NewTimer(saveLater)
			for waiting := true; waiting; {
				select {
				case <-n.unsaved:
					n.mu.Lock()
					waiting = !n.saveNow
					n.mu.Unlock()
				case <-timer.C:
					waiting = false
				case <-ctx.Done():
					waiting = false
				}
			}
			timer.Stop()
		}
		n.save()
	}
}

// save writes to the store what it lacks.
func (n *Networks) save() {
	n.mu.Lock()
	changed := map[string]*dispatcherv1.Assignments{}
	for id := range n.gone {
		changed[id] = nil
	}
	for id, e := range n.networks {
		if e.unsaved && e.object != nil {
			changed[id] = e.objects(id)
			e.unsaved = false
		}
	}
	clear(n.gone)
	n.saveNow = false
	n.mu.Unlock()
	if len(changed) == 0 {
		return
	}
	err := n.cfg.Store.ApplyNetworks(changed)
	if err == nil {
		return
	}
	n.log.Error("failed to persist networks; retrying", zap.Error(err))
	n.mu.Lock()
	defer n.mu.Unlock()
	for id := range changed {
		if e := n.networks[id]; e != nil {
			e.unsaved = true
		} else {
			n.gone[id] = true
		}
	}
	time.AfterFunc(saveLater, func() { notify(n.unsaved) })
}
