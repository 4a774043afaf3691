package faults_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	psnet "github.com/shirou/gopsutil/v4/net"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// mostConnections is less than half of Consul's default of connections from one address.
const mostConnections = 100

// TestConnectionsToConsul runs two replicas of each manager but the allocator on one
// Consul agent with its default limit of connections. It counts theirs at rest, under
// load, and when half of them were killed. Then other clients take all that are left.
func TestConnectionsToConsul(t *testing.T) {
	t.Parallel()
	const limit = 200 // Consul's default; consultest has raised it
	r := start(t, cluster.Config{
		Replicas: 2, ConsulSettings: []string{fmt.Sprintf("limits { http_max_conns_per_client = %d }", limit)},
	}, "one", "two")
	daemons := []string{"apid", "orchestratord", "schedulerd", "dispatcherd"}
	var names []string
	for _, d := range daemons {
		names = append(names, cluster.Replica(d, 1), cluster.Replica(d, 2))
	}
	wait.Within(t, waitTimeout, "replicas share the shards out", func(ctx context.Context) error { return shared(ctx, r, 2, 0) })
	total := func(ctx context.Context) int {
		t.Helper()
		all := connections(ctx, t, r, names)
		sum := 0
		for _, n := range all {
			sum += n
		}
		return sum
	}
	if n := total(t.Context()); n >= mostConnections {
		t.Errorf("eight managers have %d connections to Consul at rest, want less than %d", n, mostConnections)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var most atomic.Int64
	counted := make(chan struct{})
	go func() {
		defer close(counted)
		for ctx.Err() == nil {
			most.Store(max(most.Load(), int64(total(ctx))))
		}
	}()
	for i := range 4 {
		name := fmt.Sprintf("load%d", i)
		_, err := r.Create(t.Context(), rig.Null(name, 200))
		ok(t, err)
		running(t, r, name, 200)
		ok(t, r.Update(t.Context(), name, func(s *musterv1.ServiceSpec) { s.Task.ForceUpdate++ }))
	}
	cancel()
	<-counted
	if n := most.Load(); n >= mostConnections {
		t.Errorf("eight managers have %d connections to Consul under load, want less than %d", n, mostConnections)
	}

	for _, d := range daemons {
		name := cluster.Replica(d, 1)
		ok(t, r.Process(name).Kill())
		ok(t, r.StartManager(name))
	}
	wait.Within(t, waitTimeout, "the replicas that were started again have shards", func(ctx context.Context) error {
		return shared(ctx, r, 2, 0)
	})
	if logs := r.Logs(); strings.Contains(logs, "consul limit reached") {
		t.Error("a daemon met Consul's limit")
	}

	release := occupy(t, r.Consul.Address, limit)
	defer release()
	out, _ := muster(t, r, "cluster", "status")
	if strings.Contains(out, "DOES NOT ANSWER") {
		t.Errorf("the status says that Consul does not answer:\n%s", out)
	}
	// What is open continues: a change is complete while the agent refuses connections.
	ok(t, r.Scale(t.Context(), "load0", 100))
	running(t, r, "load0", 100)
	removeAll(t, r)
}

// connections returns how many connections to Consul each process has.
func connections(ctx context.Context, t *testing.T, r *rig.Rig, names []string) map[string]int {
	t.Helper()
	all, err := psnet.ConnectionsWithContext(ctx, "tcp")
	if err != nil {
		if ctx.Err() == nil {
			t.Error(err)
		}
		return nil
	}
	byPID := map[int32]string{}
	for _, name := range names {
		byPID[int32(r.Process(name).PID())] = name
	}
	found := map[string]int{}
	for _, c := range all {
		name, ours := byPID[c.Pid]
		if ours && net.JoinHostPort(c.Raddr.IP, fmt.Sprint(c.Raddr.Port)) == r.Consul.Address {
			found[name]++
		}
	}
	return found
}

// occupy takes all connections that an agent still gives to this address.
func occupy(t *testing.T, address string, limit int) (release func()) {
	t.Helper()
	var conns []net.Conn
	for range limit {
		d := net.Dialer{Timeout: 10 * time.Second}
		c, err := d.DialContext(t.Context(), "tcp", address)
		ok(t, err)
		conns = append(conns, c)
	}
	return func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}
}
