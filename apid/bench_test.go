package apid_test

import (
	"fmt"
	"net/http"
	"testing"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	testwait "github.com/musterhq/muster/test/kit/wait"
)

func BenchmarkCreateService(b *testing.B) {
	a := newCluster(b).apid()
	a.create(webSpec("first"))
	i := 0
	for b.Loop() {
		a.create(webSpec(fmt.Sprint("web-", i)))
		i++
	}
}

func BenchmarkCreateServiceParallel(b *testing.B) {
	a := newCluster(b).apid()
	a.create(webSpec("first"))
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			a.create(webSpec("web-" + state.NewID()))
		}
	})
}

// services makes services with ten running tasks each.
func (c *cluster) services(n int) {
	digest, err := state.Digest(webSpec("").Task)
	if err != nil {
		c.t.Fatal(err)
	}
	var fns []func(*store.Tx) error
	for i := range n {
		id := state.NewID()
		name := fmt.Sprint("web-", i)
		fns = append(fns, func(tx *store.Tx) error {
			spec := webSpec(name)
			c.tables.Specs.Put(tx, state.SpecKey(digest), &recordv1.Spec{Task: spec.Task, CreatedAt: 1})
			spec.Task = nil
			c.tables.Services.Put(tx, id, &recordv1.Service{Spec: spec, TaskDigest: digest, CreatedAt: 1, UpdatedAt: 1})
			for slot := uint64(1); slot <= 10; slot++ {
				task := state.NewID()
				c.tables.Tasks.Put(tx, state.TaskKey(id, slot, "", task), &recordv1.Task{
					Slot: slot, SpecDigest: digest, DesiredState: musterv1.TaskState_RUNNING, CreatedAt: 1,
				})
			}
			return nil
		})
	}
	for _, err := range c.store.UpdateAll(c.t.Context(), fns) {
		if err != nil {
			c.t.Fatal(err)
		}
	}
}

func (a *api) waitForServices(n uint64) {
	testwait.True(a.t, "services are there", func() bool {
		c, err := a.GetCluster(a.t.Context(), &musterv1.GetClusterRequest{})
		return err == nil && c.Cluster.Status.Services == n && c.Cluster.Status.Tasks == 10*n
	})
}

func BenchmarkGetService(b *testing.B) {
	c := newCluster(b)
	a := c.apid()
	c.services(1000)
	a.waitForServices(1000)
	for b.Loop() {
		a.get("web-500")
	}
}

// ListServices over gRPC, client and server in this process: what it measures
// is both sides' work.
func BenchmarkListServices(b *testing.B) {
	c := newCluster(b)
	a := c.apid()
	c.services(1000)
	a.waitForServices(1000)
	b.ReportAllocs()
	for b.Loop() {
		l, err := a.ListServices(b.Context(), &musterv1.ListServicesRequest{PageSize: 1000})
		if err != nil || len(l.Services) != 1000 {
			b.Fatal(len(l.GetServices()), err)
		}
	}
}

// The same without the wire: what the server has to do before it encodes.
func BenchmarkListServicesInProcess(b *testing.B) {
	c := newCluster(b)
	server := &direct{}
	a := c.apidWith(server)
	c.services(1000)
	a.waitForServices(1000)
	b.ReportAllocs()
	for b.Loop() {
		l, err := server.ListServices(b.Context(), &musterv1.ListServicesRequest{PageSize: 1000})
		if err != nil || len(l.Services) != 1000 {
			b.Fatal(len(l.GetServices()), err)
		}
	}
}

func BenchmarkListTasks(b *testing.B) {
	c := newCluster(b)
	a := c.apid()
	c.services(1000)
	a.waitForServices(1000)
	for b.Loop() {
		l, err := a.ListTasks(b.Context(), &musterv1.ListTasksRequest{PageSize: 1000})
		if err != nil || len(l.Tasks) != 1000 {
			b.Fatal(len(l.GetTasks()), err)
		}
	}
}

func BenchmarkGetServiceREST(b *testing.B) {
	c := newCluster(b)
	a := c.apid()
	c.services(1000)
	a.waitForServices(1000)
	for b.Loop() {
		if got := a.rest(http.MethodGet, "/v1/services/web-500", ""); got.code != http.StatusOK {
			b.Fatal(got.body)
		}
	}
}

// BenchmarkCreateServiceWithPort creates services with a published port beside 10,000
// others.
func BenchmarkCreateServiceWithPort(b *testing.B) {
	c := newCluster(b)
	a := c.apid()
	a.create(webSpec("first"))
	c.services(10_000)
	i := 0
	for b.Loop() {
		spec := webSpec(fmt.Sprint("port-", i))
		spec.Endpoint = &musterv1.EndpointSpec{Ports: []*musterv1.PortConfig{{TargetPort: 80, PublishedPort: uint32(1 + i%65535)}}}
		a.create(spec)
		i++
	}
}
