package networks_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/nullnetwork"
	"github.com/musterhq/muster/workerd/internal/networks"
	"github.com/musterhq/muster/workerd/network"
	"github.com/musterhq/muster/workerd/network/contractv1"
)

// node is a node with one network plugin, whose process may come and go.
type node struct {
	t        *testing.T
	kernel   *nullnetwork.Kernel
	networks *networks.Networks
	changes  chan struct{}

	mu      sync.Mutex
	plugin  network.Plugin
	applies []*networkv1.ApplyRequest
	calls   []string
	// faults are what the next calls of a method do instead of what they should.
	faults map[string][]func(ctx context.Context) error
	// broken says what is wrong with networks, and doubtful with parts of them.
	broken, doubtful map[string]string
	// sick is why the plugin says that it cannot work; empty: it can.
	sick   string
	stored map[string]*dispatcherv1.Assignments
	writes int
	// address is where other nodes send traffic to.
	address string
	logs    *observer.ObservedLogs
}

// inBubble runs a test with a node that has the networks of an empty store.
func inBubble(t *testing.T, test func(n *node)) {
	t.Helper()
	inBubbleAt(t, "192.0.2.1", test)
}

// inBubbleAt is the same for a node with an address, or none that is known yet.
func inBubbleAt(t *testing.T, address string, test func(n *node)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, address)
		n.startPlugin()
		stop := n.start()
		test(n)
		stop()
		for _, v := range n.kernel.Violations() {
			t.Error(v)
		}
	})
}

// newNode returns a node whose worker and plugin do not run yet.
func newNode(t *testing.T, address string) *node {
	return &node{
		t: t, kernel: nullnetwork.NewKernel(), changes: make(chan struct{}, 1),
		faults: map[string][]func(context.Context) error{}, broken: map[string]string{}, address: address, stored: map[string]*dispatcherv1.Assignments{},
	}
}

// start begins a life of the worker, and returns the function that ends it.
func (n *node) start() (stop func()) {
	core, logs := observer.New(zap.ErrorLevel)
	n.logs = logs
	n.networks = networks.New(networks.Config{
		NodeID: "node1", Plugins: n, Interval: 20 * time.Second, Store: n, DataPathAddress: n.address, DataPathPort: 4789, Logger: zap.New(core),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = n.networks.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// startPlugin starts a process of the plugin in place of the one before.
func (n *node) startPlugin() {
	n.mu.Lock()
	n.plugin = contractv1.New(&process{nullnetwork.New(n.kernel, nullnetwork.Config{Fault: n.fault}), n})
	n.mu.Unlock()
	n.changed()
}

// killPlugin ends the process of the plugin.
func (n *node) killPlugin() {
	n.mu.Lock()
	n.plugin = nil
	n.mu.Unlock()
	n.changed()
}

func (n *node) changed() {
	select {
	case n.changes <- struct{}{}:
	default:
	}
}

// process is a process of the plugin that records what it is told.
type process struct {
	*nullnetwork.Plugin
	n *node
}

func (p *process) Apply(ctx context.Context, req *networkv1.ApplyRequest) (*networkv1.ApplyResponse, error) {
	p.n.mu.Lock()
	p.n.applies = append(p.n.applies, req)
	broken, doubtful := maps.Clone(p.n.broken), maps.Clone(p.n.doubtful)
	p.n.mu.Unlock()
	res, err := p.Plugin.Apply(ctx, req)
	for id, why := range broken {
		res.Errors = append(res.Errors, &networkv1.NetworkError{NetworkId: id, Message: why})
	}
	for id, why := range doubtful {
		res.Warnings = append(res.Warnings, &networkv1.NetworkError{NetworkId: id, Message: why})
	}
	return res, err
}

func (n *node) fault(ctx context.Context, method, task string) error {
	n.mu.Lock()
	n.calls = append(n.calls, strings.TrimSpace(method+" "+task))
	var next func(context.Context) error
	if all := n.faults[method]; len(all) > 0 {
		next, n.faults[method] = all[0], all[1:]
	}
	n.mu.Unlock()
	if next == nil {
		return nil
	}
	return next(ctx)
}

// fail has the next call of a method fail.
func (n *node) fail(method string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.faults[method] = append(n.faults[method], func(context.Context) error { return err })
}

// hang has the next call of a method hang until it is cancelled, or until the returned
// function is called.
func (n *node) hang(method string) (release func()) {
	released := make(chan struct{})
	n.mu.Lock()
	defer n.mu.Unlock()
	n.faults[method] = append(n.faults[method], func(ctx context.Context) error {
		select {
		case <-released:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return func() { close(released) }
}

// Describe implements network.Set.
func (n *node) Describe(ctx context.Context) []*network.Described {
	n.mu.Lock()
	p := n.plugin
	n.mu.Unlock()
	about := &network.About{Name: "null", Drivers: []string{"overlay"}, Message: "it has ended"}
	if p != nil {
		about, _ = p.Describe(ctx)
	}
	n.mu.Lock()
	if n.sick != "" {
		about.Healthy, about.Message = false, n.sick
	}
	n.mu.Unlock()
	return []*network.Described{network.NewDescribed(p, about)}
}

// Changes implements network.Set.
func (n *node) Changes() <-chan struct{} { return n.changes }

// ApplyNetworks implements networks.Store.
func (n *node) ApplyNetworks(changed map[string]*dispatcherv1.Assignments) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.writes++
	for id, objects := range changed {
		if objects == nil {
			delete(n.stored, id)
		} else {
			n.stored[id] = proto.CloneOf(objects)
		}
	}
	return nil
}

// settle lets the worker do what there is to do within a time.
func (n *node) settle(within time.Duration) {
	time.Sleep(within)
	synctest.Wait()
}

// take returns the calls of Apply since the last time.
func (n *node) take() []*networkv1.ApplyRequest {
	n.mu.Lock()
	defer n.mu.Unlock()
	applies := n.applies
	n.applies = nil
	return applies
}

// wantCalls fails the test unless these calls were made since the last time.
func (n *node) wantCalls(want ...string) {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.Equal(n.calls, want) {
		n.t.Errorf("calls = %q, want %q", n.calls, want)
	}
	n.calls = nil
}

// session has the dispatcher send a complete set.
func (n *node) session(objects ...*dispatcherv1.AssignedObject) {
	n.networks.Begin()
	n.put(objects...)
	n.networks.Complete()
}

func (n *node) put(objects ...*dispatcherv1.AssignedObject) {
	for _, o := range objects {
		n.networks.Put(o)
	}
}

func net(blocks ...string) *dispatcherv1.AssignedObject {
	return &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Network{Network: &networkv1.Network{
		Id: "net", Name: "backend", Driver: "overlay", Subnets: []string{"10.64.0.0/16"}, Blocks: blocks,
	}}}
}

func peer(node string) *dispatcherv1.AssignedObject {
	return &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Peer{Peer: &networkv1.Peer{NetworkId: "net", NodeId: node}}}
}

func service(id string) *dispatcherv1.AssignedObject {
	return &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Service{Service: &networkv1.Service{NetworkId: "net", Id: id}}}
}

func backends(complete bool, tasks ...string) *dispatcherv1.AssignedObject {
	b := &networkv1.Backends{NetworkId: "net", ServiceId: "svc", Complete: complete}
	for _, id := range tasks {
		if gone, ok := strings.CutPrefix(id, "-"); ok {
			b.Removed = append(b.Removed, gone)
		} else {
			b.Backends = append(b.Backends, &networkv1.Backend{TaskId: id})
		}
	}
	return &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Backends{Backends: b}}
}

// wantBackends fails the test unless the kernel has exactly these backends of a service.
func (n *node) wantBackends(want ...string) {
	n.t.Helper()
	var got []string
	if net := n.kernel.Networks()["net"]; net != nil && net.Services["svc"] != nil {
		got = slices.Sorted(maps.Keys(net.Services["svc"].Backends))
	}
	if !slices.Equal(got, want) {
		n.t.Errorf("backends = %q, want %q", got, want)
	}
}

// attach gives a task addresses and attaches it.
func (n *node) attach(id string) error {
	ctx := context.Background()
	attachments, _, err := n.networks.Reserve(ctx, id, []network.Attachment{{NetworkID: "net"}})
	if err != nil {
		return err
	}
	_, err = n.networks.Attach(ctx, &network.Task{ID: id, Namespace: "/run/netns/" + id, Attachments: attachments})
	return err
}
