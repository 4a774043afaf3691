package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/process"
)

// workerFail kills a worker that is a process of its own, and waits until as
// many tasks as before run on the others.
func workerFail(ctx context.Context, s *site) error {
	watch, err := s.watch(ctx)
	if err != nil {
		return err
	}
	service, err := s.create(ctx, spec("bench", s.result.Tasks, nil))
	if err != nil {
		return err
	}
	all := uint64(s.result.Tasks)
	if err := await(watch, runs(service.Id, all)); err != nil {
		return err
	}
	if err := s.quiet(ctx); err != nil {
		return err
	}
	began := time.Now()
	if err := s.cluster.Process(workerName(0)).Kill(); err != nil {
		return err
	}
	err = await(watch, func(now *musterv1.Service) bool { return now.Id == service.Id && now.Status.GetRunningTasks() < all })
	if err != nil {
		return err
	}
	s.result.add("noticed", time.Since(began).Seconds(), "s")
	if err := await(watch, runs(service.Id, all)); err != nil {
		return err
	}
	s.result.add("all running elsewhere", time.Since(began).Seconds(), "s")
	return nil
}

// failover ends the first replica of every manager at once, and asks the API
// server that is left for a task.
func failover(ctx context.Context, s *site) error {
	first := cluster.Managers()
	for _, end := range []struct {
		name string
		do   func(*process.Process) error
	}{
		{"killed", (*process.Process).Kill},
		{"ended in order", (*process.Process).Stop},
	} {
		conn, err := daemon.Dialer(daemon.Plain().Client)(s.cluster.Address(cluster.Replica("apid", 2)))
		if err != nil {
			return err
		}
		err = s.failOver(ctx, conn, end.name, func() error {
			return s.each(ctx, len(first), len(first), func(_ context.Context, i int) error { return end.do(s.cluster.Process(first[i])) })
		})
		if err = errors.Join(err, conn.Close()); err != nil {
			return fmt.Errorf("managers %s: %w", end.name, err)
		}
		// Back they come, so that the next have a replica to take over from.
		for _, name := range first {
			if err := s.cluster.StartManager(name); err != nil {
				return err
			}
		}
		if err := s.quiet(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *site) failOver(ctx context.Context, conn *grpc.ClientConn, name string, end func() error) error {
	client := musterv1.NewControlServiceClient(conn)
	watch, err := client.Watch(ctx, &musterv1.WatchRequest{Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_SERVICE}})
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	if _, err := watch.Recv(); err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	began := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- end() }()
	created, err := client.CreateService(ctx, &musterv1.CreateServiceRequest{Spec: spec("after-"+name[:4], 1, nil)})
	if err != nil {
		return errors.Join(fmt.Errorf("create: %w", err), <-ended)
	}
	s.result.add(name+": next create", time.Since(began).Seconds(), "s")
	err = await(watch, func(now *musterv1.Service) bool {
		return now.Id == created.Service.Id && now.Status.GetRunningTasks() > 0
	})
	s.result.add(name+": its task running", time.Since(began).Seconds(), "s")
	return errors.Join(err, <-ended)
}
