package main

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/testcluster"
)

// result is what one run measured. Times are seconds, memory is bytes.
type result struct {
	Store   string `json:"store"`
	Workers int    `json:"workers"`
	Tasks   int    `json:"tasks"`
	// Join is from the first worker's start to the last node READY.
	Join float64 `json:"join"`
	// First and All are from CreateService to the first and the last task
	// RUNNING, as a watch of the API sees it.
	First float64 `json:"first"`
	All   float64 `json:"all"`
	// Stop is from scaling to 0 until no task is left.
	Stop float64 `json:"stop"`
	// CPU is what each process used from CreateService until all tasks ran;
	// "workers" is this process: all workers and the client.
	CPU    map[string]float64 `json:"cpu"`
	Memory map[string]int64   `json:"memory"`
}

// deploy creates a service, waits until it runs, scales it to 0 and waits again.
func deploy(ctx context.Context, cluster *testcluster.Cluster, store string, workers, tasks int) (*result, error) {
	conn, err := daemon.Dialer(daemon.Plain().Client)(cluster.API)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	client := musterv1.NewControlServiceClient(conn)
	r := &result{Store: store, Workers: workers, Tasks: tasks, CPU: map[string]float64{}, Memory: map[string]int64{}}

	began := time.Now()
	if err := awaitNodes(ctx, client, uint64(workers)); err != nil {
		return nil, err
	}
	r.Join = time.Since(began).Seconds()
	// What joining left to do is not part of what is measured.
	if err := quiet(ctx, cluster); err != nil {
		return nil, err
	}

	watch, err := client.Watch(ctx, &musterv1.WatchRequest{Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_SERVICE}})
	if err != nil {
		return nil, err
	}
	if _, err := watch.Recv(); err != nil {
		return nil, err
	}
	before, err := usage(cluster)
	if err != nil {
		return nil, err
	}
	replicas := uint64(tasks)
	began = time.Now()
	created, err := client.CreateService(ctx, &musterv1.CreateServiceRequest{Spec: &musterv1.ServiceSpec{
		Name: "bench",
		Task: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "null", Payload: &structpb.Struct{}}}},
		Mode: &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: &replicas}},
	}})
	if err != nil {
		return nil, err
	}
	err = await(watch, created.Service.Id, func(s *musterv1.Service) bool {
		if r.First == 0 && s.Status.GetRunningTasks() > 0 {
			r.First = time.Since(began).Seconds()
		}
		return s.Status.GetRunningTasks() >= replicas
	})
	if err != nil {
		return nil, err
	}
	r.All = time.Since(began).Seconds()
	after, err := usage(cluster)
	if err != nil {
		return nil, err
	}
	for name, u := range after {
		r.CPU[name] = (u.CPU - before[name].CPU).Seconds()
		r.Memory[name] = u.PeakMemory
	}

	began = time.Now()
	if _, err := client.ScaleService(ctx, &musterv1.ScaleServiceRequest{Service: created.Service.Id}); err != nil {
		return nil, err
	}
	if err := awaitNoTasks(ctx, client); err != nil {
		return nil, err
	}
	r.Stop = time.Since(began).Seconds()
	return r, nil
}

// await reads a watch until a service is as done says.
func await(watch musterv1.ControlService_WatchClient, id string, done func(*musterv1.Service) bool) error {
	for {
		resp, err := watch.Recv()
		if err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		for _, e := range resp.Events {
			if s := e.GetService(); s != nil && s.Id == id && done(s) {
				return nil
			}
		}
	}
}

func awaitNodes(ctx context.Context, client musterv1.ControlServiceClient, want uint64) error {
	return poll(ctx, 50*time.Millisecond, func() (bool, error) {
		resp, err := client.GetCluster(ctx, &musterv1.GetClusterRequest{})
		return resp.GetCluster().GetStatus().GetReadyNodes() >= want, err
	})
}

func awaitNoTasks(ctx context.Context, client musterv1.ControlServiceClient) error {
	return poll(ctx, 10*time.Millisecond, func() (bool, error) {
		resp, err := client.GetCluster(ctx, &musterv1.GetClusterRequest{})
		return err == nil && resp.GetCluster().GetStatus().GetTasks() == 0, err
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

// quiet waits until the cluster uses next to no CPU.
func quiet(ctx context.Context, cluster *testcluster.Cluster) error {
	last := time.Duration(-1)
	return poll(ctx, 500*time.Millisecond, func() (bool, error) {
		all, err := usage(cluster)
		if err != nil {
			return false, err
		}
		sum := time.Duration(0)
		for _, u := range all {
			sum += u.CPU
		}
		calm := last >= 0 && sum-last < 50*time.Millisecond
		last = sum
		return calm, nil
	})
}

// usage is that of all processes, this one included.
func usage(cluster *testcluster.Cluster) (map[string]testcluster.Usage, error) {
	all, err := cluster.Usage()
	if err != nil {
		return nil, err
	}
	mine, err := testcluster.UsageOf(os.Getpid())
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
