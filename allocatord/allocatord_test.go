package allocatord_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest"
	"google.golang.org/protobuf/proto"

	"github.com/musterhq/muster/allocatord"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// cluster is a key space, and a store to look at it and to change it.
type cluster struct {
	t      *testing.T
	kv     kv.KV
	tables *state.Tables
	store  *store.Store
	names  int
}

// bubble runs a test in virtual time.
func bubble(test *testing.T, f func(t *testing.T, c *cluster)) {
	synctest.Test(test, func(test *testing.T) {
		space, err := embedded.Open(embedded.Config{})
		if err != nil {
			test.Fatal(err)
		}
		c := &cluster{t: test, kv: space, tables: state.NewTables()}
		tables := c.tables
		c.store, err = store.New(store.Options{KV: c.kv, Prefix: daemon.Prefix}, tables.Services, tables.Endpoints,
			tables.Specs, tables.Rollouts, tables.Networks, tables.NetworkStates, tables.Blocks, tables.AllocatorFences,
			tables.Assignments, tables.Statuses, tables.Nodes, tables.NodeStates, tables.Clusters)
		if err != nil {
			test.Fatal(err)
		}
		defer c.run(c.store.Run)()
		f(test, c)
	})
}

// run runs f until stop.
func (c *cluster) run(f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.t.Context()))
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("run: %v", err)
		}
	}
}

func (c *cluster) allocator() (stop func()) { return c.allocatorOver(c.kv) }

func (c *cluster) allocatorOver(space kv.KV) (stop func()) {
	c.names++
	d, err := allocatord.New(daemon.Env{
		KV: space, Prefix: daemon.Prefix, Member: shards.Member{Instance: fmt.Sprint(c.names), Daemon: "allocatord"},
		Session: func(ctx context.Context) (kv.Session, error) {
			return space.NewSession(ctx, kv.SessionConfig{Name: "allocatord"})
		},
		Logger: zaptest.NewLogger(c.t),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return c.run(d.Run)
}

// service writes or, without ports, leaves out what a service publishes.
func (c *cluster) service(id string, ports ...*musterv1.PortConfig) {
	c.t.Helper()
	s := &recordv1.Service{Spec: &musterv1.ServiceSpec{Name: id}}
	if len(ports) > 0 {
		s.Spec.Endpoint = &musterv1.EndpointSpec{Ports: ports}
	}
	c.update(func(tx *store.Tx) { c.tables.Services.Put(tx, id, s) })
}

func (c *cluster) update(fn func(tx *store.Tx)) {
	c.t.Helper()
	err := c.store.Update(c.t.Context(), func(tx *store.Tx) error {
		fn(tx)
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.settle()
}

// settle waits until the allocators have done what they can do at once.
func (c *cluster) settle() {
	time.Sleep(3 * time.Second)
	synctest.Wait()
}

func host(target, published uint32) *musterv1.PortConfig {
	return &musterv1.PortConfig{TargetPort: target, PublishedPort: published, PublishMode: musterv1.PortConfig_HOST}
}

// want checks a service's endpoint; no ports: that it has none.
func (c *cluster) want(id string, ports ...*musterv1.PortConfig) {
	c.t.Helper()
	e, ok := c.tables.Endpoints.Get(c.store.Snapshot(), id)
	if ok != (len(ports) > 0) {
		c.t.Errorf("service %s has an endpoint: %t", id, ok)
	}
	got := e.Value.GetEndpoint().GetPorts()
	if len(got) != len(ports) {
		c.t.Fatalf("service %s publishes %v, want %v", id, got, ports)
	}
	for i, p := range ports {
		p = proto.CloneOf(p)
		p.Protocol = max(p.Protocol, musterv1.PortConfig_TCP)
		if !proto.Equal(got[i], p) {
			c.t.Errorf("service %s publishes %v, want %v", id, got[i], p)
		}
	}
}

func TestEndpointsFollowServices(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.service("early", host(80, 8080))
		defer c.allocator()()
		synctest.Wait()
		c.want("early", host(80, 8080))

		c.service("web", host(80, 8081), host(53, 0))
		c.service("plain")
		c.want("web", host(80, 8081), host(53, 0))
		c.want("plain")

		c.service("web", host(80, 8082))
		c.want("web", host(80, 8082))
		c.service("web")
		c.want("web")
		c.service("plain", host(80, 8083))
		c.want("plain", host(80, 8083))
		c.update(func(tx *store.Tx) { c.tables.Services.Delete(tx, "plain") })
		c.want("plain")
		c.want("early", host(80, 8080))
	})
}

// What another writer did to an endpoint does not last.
func TestEndpointsAreRestored(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		defer c.allocator()()
		c.service("web", host(80, 8080))
		c.update(func(tx *store.Tx) { c.tables.Endpoints.Delete(tx, "web") })
		c.want("web", host(80, 8080))
		c.update(func(tx *store.Tx) { c.tables.Endpoints.Put(tx, "stray", &recordv1.Endpoint{}) })
		c.want("stray")
	})
}

func TestAnotherReplicaTakesOver(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		stop := c.allocator()
		synctest.Wait()
		defer c.allocator()()
		c.service("web", host(80, 8080))
		c.want("web", host(80, 8080))
		stop()
		c.service("web", host(80, 8081))
		c.service("gone")
		c.want("web", host(80, 8081))
	})
}

// What was removed while no allocator was there is removed.
func TestCatchesUp(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		stop := c.allocator()
		c.service("web", host(80, 8080))
		c.want("web", host(80, 8080))
		stop()
		c.update(func(tx *store.Tx) { c.tables.Services.Delete(tx, "web") })
		defer c.allocator()()
		synctest.Wait()
		c.want("web")
	})
}
