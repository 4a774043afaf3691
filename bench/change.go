package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
)

const (
	// changes is how often each change is made.
	changes = 20
	// few is how many tasks the services have that are created.
	few = 10
	// many is how many tasks the services have that are there already, but for one
	// that has half of all.
	many = 1000
)

// change measures what single changes cost in a cluster that runs tasks already:
// half of them are one service's.
func change(ctx context.Context, s *site) error {
	large, err := s.fill(ctx)
	if err != nil {
		return err
	}
	rest, err := s.restingCPU(ctx)
	if err != nil {
		return err
	}
	watch, err := s.watch(ctx)
	if err != nil {
		return err
	}
	gone, err := s.watchRemovals(ctx)
	if err != nil {
		return err
	}
	ids := make([]string, changes)
	half := uint64(s.result.Tasks / 2)
	for _, c := range []struct {
		name string
		do   func(i int) error
	}{
		{"service of 10 created", func(i int) error {
			service, err := s.create(ctx, spec(serviceName(i), few, nil))
			if err != nil {
				return err
			}
			ids[i] = service.Id
			return await(watch, runs(service.Id, few))
		}},
		{"it loses a task", func(i int) error {
			if err := s.scale(ctx, ids[i], few-1); err != nil {
				return err
			}
			return gone.await(1)
		}},
		{"service of 9 removed", func(i int) error {
			if _, err := s.client.RemoveService(ctx, &musterv1.RemoveServiceRequest{Service: ids[i]}); err != nil {
				return fmt.Errorf("remove: %w", err)
			}
			return gone.await(few - 1)
		}},
		{"large service loses a task", func(i int) error {
			if err := s.scale(ctx, large, half-uint64(i)-1); err != nil {
				return err
			}
			return gone.await(1)
		}},
		{"large service gains a task", func(i int) error {
			n := half - changes + uint64(i) + 1
			if err := s.scale(ctx, large, n); err != nil {
				return err
			}
			return await(watch, runs(large, n))
		}},
	} {
		if err := s.costOf(ctx, c.name, rest, c.do); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// runs reports whether a service has exactly so many running tasks.
func runs(id string, n uint64) func(*musterv1.Service) bool {
	return func(now *musterv1.Service) bool { return now.Id == id && now.Status.GetRunningTasks() == n }
}

// fill creates services with all the result's tasks, and waits until they run. It
// returns the one that has half of them.
func (s *site) fill(ctx context.Context) (string, error) {
	watch, err := s.watch(ctx)
	if err != nil {
		return "", err
	}
	half := s.result.Tasks / 2
	want := map[string]int{"large": half}
	for left, i := s.result.Tasks-half, 0; left > 0; left, i = left-many, i+1 {
		want[fmt.Sprintf("filler%03d", i)] = min(left, many)
	}
	specs := make([]*musterv1.ServiceSpec, 0, len(want))
	for name, n := range want {
		specs = append(specs, spec(name, n, nil))
	}
	// The watch is read from the start: one that is not falls behind.
	g, calls := errgroup.WithContext(ctx)
	g.Go(func() error {
		return await(watch, func(now *musterv1.Service) bool {
			if n, ok := want[now.Spec.Name]; ok && now.Status.GetRunningTasks() == uint64(n) {
				delete(want, now.Spec.Name)
			}
			return len(want) == 0
		})
	})
	g.Go(func() error {
		for _, spec := range specs {
			if _, err := s.create(calls, spec); err != nil {
				return err
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return "", err
	}
	large, err := s.client.GetService(ctx, &musterv1.GetServiceRequest{Service: "large"})
	if err != nil {
		return "", fmt.Errorf("get service: %w", err)
	}
	return large.Service.Id, s.quiet(ctx)
}

func (s *site) scale(ctx context.Context, service string, n uint64) error {
	if _, err := s.client.ScaleService(ctx, &musterv1.ScaleServiceRequest{Service: service, Replicas: n}); err != nil {
		return fmt.Errorf("scale to %d: %w", n, err)
	}
	return nil
}

// awaitTasks waits until the cluster has records of so many tasks.
func (s *site) awaitTasks(ctx context.Context, n int) error {
	return poll(ctx, 10*time.Millisecond, func() (bool, error) {
		resp, err := s.client.GetCluster(ctx, &musterv1.GetClusterRequest{})
		return err == nil && resp.GetCluster().GetStatus().GetTasks() == uint64(n), err
	})
}

// removals waits for records of tasks to go, as a watch sees them.
type removals struct {
	watch musterv1.ControlService_WatchClient
}

func (s *site) watchRemovals(ctx context.Context) (removals, error) {
	watch, err := s.client.Watch(ctx, &musterv1.WatchRequest{
		Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_TASK}, Actions: []musterv1.WatchAction{musterv1.WatchAction_DELETE},
	})
	if err == nil {
		_, err = watch.Recv()
	}
	if err != nil {
		return removals{}, fmt.Errorf("watch: %w", err)
	}
	return removals{watch}, nil
}

func (r removals) await(n int) error {
	for n > 0 {
		resp, err := r.watch.Recv()
		if err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		n -= len(resp.Events)
	}
	return nil
}

// costs are what processes have used up to now.
type costs struct {
	cpu map[string]time.Duration
	// committed is how many bytes the daemons have written to the store.
	committed float64
	// consul is how many bytes Consul has read and written: from and to its
	// clients and its disk.
	consul float64
}

func (s *site) costs(ctx context.Context) (costs, error) {
	c := costs{cpu: map[string]time.Duration{}}
	usage, err := s.usage()
	if err != nil {
		return c, err
	}
	for name, u := range usage {
		c.cpu[name] = u.CPU
	}
	c.consul = float64(usage["consul"].Transferred)
	c.committed, err = s.committed(ctx)
	return c, err
}

// restingCPU is what each process uses in a second while nothing happens.
func (s *site) restingCPU(ctx context.Context) (map[string]time.Duration, error) {
	const window = 5 * time.Second
	before, err := s.usage()
	if err != nil {
		return nil, err
	}
	if err := backoff.Sleep(ctx, window); err != nil {
		return nil, err
	}
	after, err := s.usage()
	if err != nil {
		return nil, err
	}
	rest := map[string]time.Duration{}
	for name, u := range after {
		rest[name] = (u.CPU - before[name].CPU) / time.Duration(window.Seconds())
	}
	return rest, nil
}

// costOf makes a change again and again, and adds what one costs, without what
// the processes use anyway.
func (s *site) costOf(ctx context.Context, name string, rest map[string]time.Duration, do func(i int) error) (err error) {
	p := s.profile(ctx, name)
	defer func() { err = errors.Join(err, p.wait()) }()
	before, err := s.costs(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	took := make([]time.Duration, changes)
	for i := range took {
		began := time.Now()
		if err := do(i); err != nil {
			return err
		}
		took[i] = time.Since(began)
	}
	// What is left to do after a change was seen is part of it.
	if err := backoff.Sleep(ctx, time.Second); err != nil {
		return err
	}
	after, err := s.costs(ctx)
	if err != nil {
		return err
	}
	passed := time.Since(began).Seconds()
	slices.Sort(took)
	each := func(sum float64) float64 { return max(0, sum) / changes }
	s.result.add(name, took[changes/2].Seconds()*1e3, "ms")
	managers, consul := 0.0, 0.0
	for process, used := range after.cpu {
		cpu := (used-before.cpu[process]).Seconds()*1e3 - rest[process].Seconds()*1e3*passed
		switch process {
		case "workers":
		case "consul":
			consul = cpu
		default:
			managers += cpu
			if s.result.Store == "consul" {
				s.result.add(name+", CPU "+process, each(cpu), "ms")
			}
		}
	}
	s.result.add(name+", CPU managers", each(managers), "ms")
	s.result.add(name+", CPU Consul", each(consul), "ms")
	s.result.add(name+", written", each(after.committed-before.committed)/1024, "KiB")
	s.result.add(name+", through Consul", each(after.consul-before.consul)/1024, "KiB")
	return nil
}
