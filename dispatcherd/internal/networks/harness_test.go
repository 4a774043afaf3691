package networks_test

import (
	"context"
	"errors"
	"testing"

	"go.uber.org/zap"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/assignments/assignmentstest"
	"github.com/musterhq/muster/dispatcherd/internal/networks"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// site is a store in memory with an index of its networks.
type site struct {
	t      testing.TB
	store  *store.Store
	tables *state.Tables
	index  *networks.Index
}

func newSite(t testing.TB) *site {
	t.Helper()
	space, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ts := state.NewTables()
	s := &site{t: t, tables: ts, index: networks.New(ts, nil)}
	s.store, err = store.New(store.Options{KV: space, Prefix: "muster", Logger: zap.NewNop()},
		ts.Networks, ts.NetworkStates, ts.Blocks, ts.Endpoints, ts.Services, ts.Specs, ts.Tasks, ts.Assignments, ts.Statuses, ts.NodeStates, ts.Rollouts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.store.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	if err := s.store.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) update(f func(tx *store.Tx)) {
	s.t.Helper()
	if err := s.store.Update(context.Background(), func(tx *store.Tx) error { f(tx); return nil }); err != nil {
		s.t.Fatal(err)
	}
}

// advance lets the index see the newest snapshot, and returns the networks that a
// node must compare.
func (s *site) advance() map[string][]string {
	nodes, _ := s.index.Advance(s.store.Snapshot())
	return nodes
}

// network writes a network with a subnet.
func (s *site) network(tx *store.Tx, id string) {
	s.tables.Networks.Put(tx, id, &recordv1.Network{Spec: &musterv1.NetworkSpec{Name: "name-of-" + id}})
	s.tables.NetworkStates.Put(tx, id, &recordv1.NetworkState{Subnets: []string{"10.64.0.0/16"}, Vni: 4096})
}

// block leases a block of a network to a node.
func (s *site) block(tx *store.Tx, network string, number uint32, node, subnet string) {
	s.tables.Blocks.Put(tx, state.BlockKey(network, number), &recordv1.Block{NodeId: node, Subnets: []string{subnet}, LeasedAt: int64(number)})
}

// node writes that a node is alive.
func (s *site) node(tx *store.Tx, id, address string) {
	s.tables.NodeStates.Put(tx, id, &recordv1.NodeState{
		State:       musterv1.NodeStatus_READY,
		Description: &musterv1.NodeDescription{DataPath: &musterv1.DataPath{Address: address, Port: 4789}},
	})
}

// service writes a service on networks.
func (s *site) service(tx *store.Tx, id string, networks ...string) {
	spec := &musterv1.TaskSpec{}
	for _, network := range networks {
		spec.Networks = append(spec.Networks, &musterv1.NetworkAttachmentConfig{Target: network, Aliases: []string{"alias-of-" + id}})
	}
	s.tables.Specs.Put(tx, state.SpecKey([]byte("digest-of-"+id)), &recordv1.Spec{Task: spec})
	s.tables.Services.Put(tx, id, &recordv1.Service{
		Spec: &musterv1.ServiceSpec{Name: "name-of-" + id}, TaskDigest: []byte("digest-of-" + id),
	})
}

// task writes a task that runs on a node, with an address on a network.
func (s *site) task(tx *store.Tx, node, service, id, network, address string) {
	s.tables.Tasks.Put(tx, state.TaskKey(service, 1, node, id), &recordv1.Task{Slot: 1, DesiredState: musterv1.TaskState_RUNNING, SpecDigest: []byte("digest-of-" + service)})
	key := state.NodeTaskKey(node, service, id)
	s.tables.Assignments.Put(tx, key, &recordv1.Assignment{Slot: 1})
	s.tables.Statuses.Put(tx, key, &recordv1.Status{
		State: musterv1.TaskState_RUNNING, AppliedAt: 5,
		Networks: []*musterv1.NetworkAttachment{{NetworkId: network, Addresses: []string{address}}},
	})
}

// session is what one node was sent.
type session struct {
	t      fataler
	site   *site
	node   string
	sent   *assignments.Sent
	worker *assignmentstest.Worker
	// protocol is the worker's.
	protocol uint32
	// packed counts the objects with packed backends.
	packed int
}

type fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

var limits = assignments.Limits{Objects: 1000, Bytes: 1 << 20}

// connect starts a session of a node, which sends the complete set.
func (s *site) connect(t fataler, node string) *session {
	t.Helper()
	return s.connectAs(t, node, assignments.Protocol)
}

// connectAs is connect for a worker that understands an assignment protocol.
func (s *site) connectAs(t fataler, node string, protocol uint32) *session {
	t.Helper()
	n := &session{t: t, site: s, node: node, worker: assignmentstest.New(), protocol: protocol}
	n.reconnect()
	return n
}

// reconnect starts a new session of a worker that keeps what it has.
func (n *session) reconnect() {
	n.t.Helper()
	if n.sent != nil {
		n.sent.Close()
	}
	n.sent = assignments.NewSent(n.protocol)
	n.apply(n.sent.Complete(nil, n.site.index.Held(n.node), limits))
}

// apply has the worker apply messages.
func (n *session) apply(messages []*dispatcherv1.Assignments) {
	n.t.Helper()
	for _, m := range messages {
		for _, o := range m.Objects {
			if o.GetPackedBackends() != nil {
				n.packed++
			}
		}
		if err := n.worker.Apply(m); err != nil {
			n.t.Fatalf("node %s: %v in %v", n.node, err, m)
		}
	}
}
