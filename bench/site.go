package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/test/kit/cluster"
)

// site is a cluster that is being measured.
type site struct {
	o       *options
	cluster *cluster.Cluster
	fleet   *fleet
	conn    *grpc.ClientConn
	client  musterv1.ControlServiceClient
	result  *result
	run     int
	// network is the id of the network that tasks are attached to; empty: none.
	network string
	// arrivals is nil unless the scenario is about networks.
	arrivals *arrivals
	// ends are what to do at the end, the last one first.
	ends []func() error
}

// startSite starts a cluster, waits until all its workers are there and until
// what joining left to do is done, for that is not part of what is measured.
func startSite(ctx context.Context, o *options, sc *scenario, r *result, run int) (s *site, err error) {
	s = &site{o: o, result: r, run: run}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	dir, err := os.MkdirTemp("", "muster-bench-")
	if err != nil {
		return s, fmt.Errorf("make a directory: %w", err)
	}
	if o.keep {
		fmt.Fprintln(os.Stderr, "logs are in", dir)
	} else {
		s.ends = append(s.ends, func() error { return os.RemoveAll(dir) })
	}
	binary, err := filepath.Abs(o.binary)
	if err != nil {
		return s, fmt.Errorf("-binary: %w", err)
	}
	s.cluster, err = cluster.Start(ctx, cluster.Config{
		Binary: binary, Dir: dir, Embedded: r.Store != consul, OnDisk: r.Store == disk, Replicas: sc.managers,
	})
	if err != nil {
		return s, err
	}
	s.ends = append(s.ends, s.cluster.Stop)
	if s.conn, err = daemon.Dialer(daemon.Plain().Client)(s.cluster.API); err != nil {
		return s, err
	}
	s.ends = append(s.ends, s.conn.Close)
	s.client = musterv1.NewControlServiceClient(s.conn)
	if sc.own {
		for i := range r.Workers {
			if _, err := s.cluster.StartWorker(workerName(i), "--plugin-dir", filepath.Join(filepath.Dir(binary), "plugins")); err != nil {
				return s, err
			}
		}
	} else {
		var dispatchers []string
		for _, name := range s.cluster.Replicas("dispatcherd") {
			dispatchers = append(dispatchers, s.cluster.Address(name))
		}
		if sc.network {
			s.arrivals = newArrivals()
		}
		if s.fleet, err = startFleet(ctx, dispatchers, r.Workers, s.arrivals); err != nil {
			return s, err
		}
		// The workers end before the managers do.
		s.ends = append(s.ends, func() error { s.fleet.stop(); return nil })
	}
	began := time.Now()
	if err := s.awaitNodes(ctx); err != nil {
		return s, err
	}
	fmt.Fprintf(os.Stderr, "  %d workers have joined after %.2f s\n", r.Workers, time.Since(began).Seconds())
	if err := s.createNetwork(ctx, sc); err != nil {
		return s, err
	}
	return s, s.quiet(ctx)
}

// workerName is that of a worker that is a process of its own.
func workerName(i int) string { return fmt.Sprintf("worker%03d", i) }

func (s *site) stop() error {
	var errs []error
	for i := len(s.ends) - 1; i >= 0; i-- {
		errs = append(errs, s.ends[i]())
	}
	return errors.Join(errs...)
}

// spec is a service of null tasks.
func spec(name string, replicas int, payload map[string]any) *musterv1.ServiceSpec {
	p, err := structpb.NewStruct(payload)
	if err != nil {
		panic(err) // payloads are written in this program
	}
	n := uint64(replicas)
	return &musterv1.ServiceSpec{
		Name: name,
		Task: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "null", Payload: p}}},
		Mode: &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: &n}},
		// All tasks at once.
		Update: &musterv1.UpdateConfig{},
	}
}

func (s *site) create(ctx context.Context, spec *musterv1.ServiceSpec) (*musterv1.Service, error) {
	if s.network != "" {
		spec.Task.Networks = []*musterv1.NetworkAttachmentConfig{{Target: s.network}}
	}
	created, err := s.client.CreateService(ctx, &musterv1.CreateServiceRequest{Spec: spec})
	if err != nil {
		return nil, fmt.Errorf("create service %s: %w", spec.Name, err)
	}
	return created.Service, nil
}

// createNetwork creates the network that tasks are attached to, if that was asked for, or
// the scenario needs it.
func (s *site) createNetwork(ctx context.Context, sc *scenario) error {
	if !s.o.network && !sc.network {
		return nil
	}
	created, err := s.client.CreateNetwork(ctx, &musterv1.CreateNetworkRequest{Spec: &musterv1.NetworkSpec{Name: "bench"}})
	if err != nil {
		return fmt.Errorf("create network: %w", err)
	}
	s.network = created.GetNetwork().GetId()
	return nil
}

// watch begins to watch services, and returns once the watch is established.
func (s *site) watch(ctx context.Context) (musterv1.ControlService_WatchClient, error) {
	watch, err := s.client.Watch(ctx, &musterv1.WatchRequest{Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_SERVICE}})
	if err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	if _, err := watch.Recv(); err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	return watch, nil
}

// await reads a watch until done says so of a service.
func await(watch musterv1.ControlService_WatchClient, done func(*musterv1.Service) bool) error {
	for {
		resp, err := watch.Recv()
		if err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		for _, e := range resp.Events {
			if s := e.GetService(); s != nil && done(s) {
				return nil
			}
		}
	}
}

func (s *site) awaitNodes(ctx context.Context) error {
	return poll(ctx, 50*time.Millisecond, func() (bool, error) {
		resp, err := s.client.GetCluster(ctx, &musterv1.GetClusterRequest{})
		return resp.GetCluster().GetStatus().GetReadyNodes() >= uint64(s.result.Workers), err
	})
}

func poll(ctx context.Context, every time.Duration, done func() (bool, error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// quiet waits until managers and Consul use next to no CPU.
func (s *site) quiet(ctx context.Context) error {
	last := time.Duration(-1)
	return poll(ctx, 500*time.Millisecond, func() (bool, error) {
		all, err := s.usage()
		if err != nil {
			return false, err
		}
		sum := time.Duration(0)
		for name, u := range all {
			if name != "workers" {
				sum += u.CPU
			}
		}
		// A tenth of a core, and what heartbeats cost: they continue.
		calm := last >= 0 && sum-last < 50*time.Millisecond+time.Duration(s.result.Workers)*60*time.Microsecond
		last = sum
		return calm, nil
	})
}

// usage is that of all processes, this one included.
func (s *site) usage() (map[string]cluster.Usage, error) {
	all, err := s.cluster.Usage()
	if err != nil {
		return nil, err
	}
	mine, err := cluster.UsageOf(os.Getpid())
	if err != nil {
		return nil, err
	}
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return nil, fmt.Errorf("usage of this process: %w", err)
	}
	mine.CPU = time.Duration(r.Utime.Nano() + r.Stime.Nano())
	all["workers"] = mine
	return all, nil
}

// account measures what all processes use until the function that it returns
// is called, which adds it to the result.
func (s *site) account(ctx context.Context) (done func() error, err error) {
	did, err := s.storeCounts(ctx)
	if err != nil {
		return nil, err
	}
	before, err := s.usage()
	if err != nil {
		return nil, err
	}
	return func() error {
		after, err := s.usage()
		if err != nil {
			return err
		}
		now, err := s.storeCounts(ctx)
		if err != nil {
			return err
		}
		s.result.Counts = map[string]counts{}
		for name, c := range now {
			s.result.Counts[name] = c.minus(did[name])
		}
		s.result.CPU = map[string]float64{}
		var managers, memory float64
		for name, u := range after {
			cpu := (u.CPU - before[name].CPU).Seconds()
			s.result.CPU[name] = cpu
			if name == "workers" {
				continue
			}
			memory += float64(u.PeakMemory)
			if name != "consul" {
				managers += cpu
			}
		}
		s.result.add("CPU managers", managers, "s")
		s.result.add("CPU Consul", s.result.CPU["consul"], "s")
		s.result.add("CPU managers and Consul", managers+s.result.CPU["consul"], "s")
		s.result.add("CPU workers", s.result.CPU["workers"], "s")
		s.result.add("peak memory", memory/(1<<20), "MiB")
		return nil
	}, nil
}
