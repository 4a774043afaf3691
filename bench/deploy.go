package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// deploy creates a service, waits until it runs, scales it to 0 and waits again.
func deploy(ctx context.Context, s *site) (err error) {
	watch, err := s.watch(ctx)
	if err != nil {
		return err
	}
	p := s.profile(ctx, "deploy")
	defer func() { err = errors.Join(err, p.wait()) }()
	done, err := s.account(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	service, err := s.create(ctx, spec("bench", s.result.Tasks, nil))
	if err != nil {
		return err
	}
	var first time.Duration
	err = await(watch, func(now *musterv1.Service) bool {
		if now.Id == service.Id && first == 0 && now.Status.GetRunningTasks() > 0 {
			first = time.Since(began)
		}
		return now.Id == service.Id && now.Status.GetRunningTasks() >= uint64(s.result.Tasks)
	})
	if err != nil {
		return err
	}
	all := time.Since(began)
	s.result.add("first running", first.Seconds(), "s")
	s.result.add("all running", all.Seconds(), "s")
	s.result.add("tasks", float64(s.result.Tasks)/all.Seconds(), "/s")
	if err := done(); err != nil {
		return err
	}
	if err := p.wait(); err != nil {
		return err
	}
	p = s.profile(ctx, "stop")
	began = time.Now()
	if _, err := s.client.ScaleService(ctx, &musterv1.ScaleServiceRequest{Service: service.Id}); err != nil {
		return fmt.Errorf("scale to 0: %w", err)
	}
	if err := s.awaitTasks(ctx, 0); err != nil {
		return err
	}
	s.result.add("stopped", time.Since(began).Seconds(), "s")
	return nil
}

// clients is how many clients call at the same time, where it is many.
const clients = 32

// distinct creates services of one task each, and removes them.
func distinct(ctx context.Context, s *site) (err error) {
	watch, err := s.watch(ctx)
	if err != nil {
		return err
	}
	p := s.profile(ctx, "distinct")
	defer func() { err = errors.Join(err, p.wait()) }()
	done, err := s.account(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	g, calls := errgroup.WithContext(ctx)
	g.SetLimit(clients)
	g.Go(func() error {
		running := map[string]bool{}
		return await(watch, func(now *musterv1.Service) bool {
			if now.Status.GetRunningTasks() > 0 {
				running[now.Id] = true
			}
			return len(running) == s.result.Tasks
		})
	})
	for i := range s.result.Tasks {
		g.Go(func() error {
			_, err := s.create(calls, spec(serviceName(i), 1, payload(i)))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	all := time.Since(began)
	s.result.add("all running", all.Seconds(), "s")
	s.result.add("services", float64(s.result.Tasks)/all.Seconds(), "/s")
	if err := done(); err != nil {
		return err
	}
	began = time.Now()
	if err := s.each(ctx, s.result.Tasks, clients, func(ctx context.Context, i int) error {
		_, err := s.client.RemoveService(ctx, &musterv1.RemoveServiceRequest{Service: serviceName(i)})
		return err
	}); err != nil {
		return fmt.Errorf("remove services: %w", err)
	}
	if err := s.awaitTasks(ctx, 0); err != nil {
		return err
	}
	s.result.add("removed", time.Since(began).Seconds(), "s")
	return nil
}

// serviceName is that of one service of many.
func serviceName(i int) string { return fmt.Sprintf("bench%06d", i) }

// each calls do with 0 to n-1, so many at the same time.
func (s *site) each(ctx context.Context, n, atOnce int, do func(context.Context, int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for i := range n {
		g.Go(func() error { return do(ctx, i) })
	}
	return g.Wait()
}

// update changes the spec of a service that runs: all tasks at once, and a few at
// a time. How long a task is watched for failure is left out.
func update(ctx context.Context, s *site) error {
	watch, err := s.watch(ctx)
	if err != nil {
		return err
	}
	service, err := s.create(ctx, spec("bench", s.result.Tasks, nil))
	if err != nil {
		return err
	}
	converged := func(version uint64) func(*musterv1.Service) bool {
		return func(now *musterv1.Service) bool {
			return now.Id == service.Id && now.Meta.GetVersion() >= version && now.Status.GetConverged()
		}
	}
	if err := await(watch, converged(0)); err != nil {
		return err
	}
	var done func() error
	for i, parallelism := range []uint64{0, 100, 10} {
		if err := s.quiet(ctx); err != nil {
			return err
		}
		if i == 0 {
			if done, err = s.account(ctx); err != nil {
				return err
			}
		}
		next := spec("bench", s.result.Tasks, payload(1+i))
		next.Update = &musterv1.UpdateConfig{Parallelism: parallelism, Monitor: durationpb.New(0)}
		began := time.Now()
		updated, err := s.client.UpdateService(ctx, &musterv1.UpdateServiceRequest{
			Service: service.Id, Version: service.Meta.GetVersion(), Spec: next,
		})
		if err != nil {
			return fmt.Errorf("update: %w", err)
		}
		service = updated.Service
		if err := await(watch, converged(service.Meta.GetVersion())); err != nil {
			return err
		}
		took := time.Since(began)
		if i == 0 {
			s.result.add("all updated", took.Seconds(), "s")
			if err := done(); err != nil {
				return err
			}
			continue
		}
		s.result.add(fmt.Sprintf("%d at a time", parallelism), took.Seconds(), "s")
		waves := max(1, s.result.Tasks/int(parallelism))
		s.result.add(fmt.Sprintf("%d at a time, each", parallelism), took.Seconds()*1000/float64(waves), "ms")
	}
	return nil
}

// payload makes a spec that no other number makes, and that runs as any other.
func payload(i int) map[string]any {
	return map[string]any{"stopGracePeriod": fmt.Sprintf("%dms", 10_000+i)}
}
