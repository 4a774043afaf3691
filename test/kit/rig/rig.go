// Package rig runs clusters for tests: real processes with workers, clients of the API, and
// a view of the processes on the machine. Only StartFor needs a test; programs can use the
// rest.
package rig

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/cluster"
)

// Config says what to start.
type Config struct {
	cluster.Config
	// Built is the directory of the programs that Build has made. Binary is set from it.
	Built string
	// NodeIDs are the ids of the workers' nodes, by the workers' names.
	NodeIDs map[string]string
}

// Rig is a cluster under test.
type Rig struct {
	*cluster.Cluster
	cfg Config
	bin string
	// Nodes holds the id of each worker's node, by the worker's name.
	Nodes map[string]string
	conns map[string]*grpc.ClientConn
	// person is nil for a cluster without access control.
	person *person

	mu sync.Mutex
	// next is the index of the apid replica to ask first.
	next int
}

// Start starts a cluster and its workers. The caller closes it.
func Start(ctx context.Context, cfg Config) (_ *Rig, err error) {
	r := &Rig{cfg: cfg, bin: filepath.Join(cfg.Dir, "bin"), Nodes: maps.Clone(cfg.NodeIDs), conns: map[string]*grpc.ClientConn{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if err := Install(cfg.Built, r.bin); err != nil {
		return nil, err
	}
	r.cfg.Binary = r.Binary()
	if r.Cluster, err = cluster.Start(ctx, r.cfg.Config); err != nil {
		return nil, err
	}
	secure := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	if cfg.CertificateLifetime > 0 {
		if r.person, err = r.enrol(ctx); err != nil {
			return nil, err
		}
		token, err := r.adminToken()
		if err != nil {
			return nil, err
		}
		secure = []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(r.TLS(authv1.Role_APID))), grpc.WithPerRPCCredentials(bearer(token))}
	}
	for _, name := range r.Replicas("apid") {
		options := append(slices.Clone(secure), grpc.WithConnectParams(connectParams()))
		if cfg.Net != nil {
			options = append(options, grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
				return cfg.Net.DialContext(ctx, "tcp", address)
			}))
		}
		if r.conns[name], err = grpc.NewClient("passthrough:///"+r.Address(name), options...); err != nil {
			return nil, fmt.Errorf("connect to %s: %w", name, err)
		}
	}
	for name := range r.Nodes {
		if err := r.StartNode(name); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Dir returns a directory that is removed after what the test cleans up later. Its path is
// short, as the paths of sockets must be. It is not t.TempDir, whose removal fails while
// processes of a cluster still write to it.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "muster-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// StartFor starts a cluster that ends with a test, in a directory of its own unless one is
// given. It shows the logs if the test fails.
func StartFor(t testing.TB, cfg Config) *Rig {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = Dir(t)
	}
	r, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.Logs())
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// Binary returns the rig's muster program. No other rig runs it, so a process's program
// tells which rig the process belongs to.
func (r *Rig) Binary() string { return filepath.Join(r.bin, "muster") }

// Install copies the programs of another build to the rig, and returns its muster.
func (r *Rig) Install(built, name string) (string, error) {
	dir := filepath.Join(r.bin, name)
	if err := Install(built, dir); err != nil {
		return "", err
	}
	return filepath.Join(dir, "muster"), nil
}

// StartNodeFrom is StartNode with another muster program.
func (r *Rig) StartNodeFrom(muster, name string) error {
	_, err := r.StartWorkerFrom(muster, name, "--node-id", r.Nodes[name])
	return err
}

// StartNode starts a worker. It may have been killed before.
func (r *Rig) StartNode(name string) error {
	_, err := r.StartWorker(name, "--node-id", r.Nodes[name])
	return err
}

// Client returns a client of one replica of apid, on a connection that stays open.
func (r *Rig) Client(name string) musterv1.ControlServiceClient {
	return musterv1.NewControlServiceClient(r.conns[name])
}

// Machine returns the running processes of this rig.
func (r *Rig) Machine() ([]Process, error) {
	nodes := map[string]bool{}
	for _, id := range r.Nodes {
		nodes[id] = true
	}
	return Machine(r.bin, nodes)
}

// TaskProcesses returns the running processes of tasks, by task: the commands, not their
// supervisors.
func (r *Rig) TaskProcesses() (map[string][]Process, error) {
	all, err := r.Machine()
	if err != nil {
		return nil, err
	}
	found := map[string][]Process{}
	for _, p := range all {
		if p.Task != "" && !strings.HasPrefix(p.Program, r.bin+"/") {
			found[p.Task] = append(found[p.Task], p)
		}
	}
	return found, nil
}

// Close ends the cluster in order, kills what is left of it and says so.
func (r *Rig) Close() error {
	var errs []error
	for _, conn := range r.conns {
		errs = append(errs, conn.Close())
	}
	if r.person != nil {
		errs = append(errs, r.person.leave())
	}
	if r.Cluster != nil {
		errs = append(errs, r.Stop())
	}
	left, err := r.Machine()
	errs = append(errs, err)
	for _, p := range left {
		errs = append(errs, fmt.Errorf("left behind and killed: %s", p))
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Dir returns the directory with all that the cluster keeps, and with its logs.
func (r *Rig) Dir() string { return r.cfg.Dir }

// Logs returns the ends of the logs of all processes.
func (r *Rig) Logs() string { return cluster.Logs(r.cfg.Dir) }
