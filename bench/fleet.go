package main

import (
	"context"
	"fmt"
	"sync"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/workerd"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/executor/contractv1"
	"github.com/musterhq/muster/workerd/network"
)

// fleet is a number of workers in this process: real ones, with the null
// executor in place of plugin processes and with their state in memory.
type fleet struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func startFleet(ctx context.Context, dispatchers []string, workers int, a *arrivals) (*fleet, error) {
	ctx, cancel := context.WithCancel(ctx)
	f := &fleet{cancel: cancel}
	for i := range workers {
		var applied func(*network.Change)
		if a != nil {
			applied = func(change *network.Change) { a.applied(i, change) }
		}
		w, err := newWorker(ctx, dispatchers, fmt.Sprintf("bench%05d", i), applied)
		if err != nil {
			f.stop()
			return nil, err
		}
		f.wg.Go(func() {
			// A worker that ends is missed by the measurement.
			_ = w.Run(ctx)
		})
	}
	return f, nil
}

// dataPathAddress is where workers say that they get the traffic of networks. There is
// none.
const dataPathAddress = "127.0.0.1"

func newWorker(ctx context.Context, dispatchers []string, name string, applied func(*network.Change)) (*workerd.Worker, error) {
	e, err := null.New(null.Config{})
	if err != nil {
		return nil, err
	}
	set, err := executor.NewFixed(ctx, contractv1.FromServer(sdk.NewServer(e)))
	if err != nil {
		return nil, err
	}
	networks, err := network.NewFixed(ctx, newDataPlane(applied))
	if err != nil {
		return nil, err
	}
	cfg := workerd.DefaultConfig()
	cfg.DataPathAddress = dataPathAddress
	cfg.NodeID, cfg.Hostname, cfg.Dispatchers = name, name, dispatchers
	cfg.Resources = &musterv1.Resources{NanoCpus: 64e9, MemoryBytes: 1 << 40}
	return workerd.New(workerd.Env{
		Logger: zap.NewNop(), Dial: daemon.Dialer(daemon.Plain().Client), Executors: set, Networks: networks, Version: "bench",
	}, cfg)
}

func (f *fleet) stop() {
	f.cancel()
	f.wg.Wait()
}
