package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/kv"
	kvconsul "github.com/musterhq/muster/internal/kv/consul"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/test/kit/process"
)

const (
	// takeOverServices is so many that all shards' owners have some of them to look
	// after, and takeOverTasks so many that each worker gets a task.
	takeOverServices = 8
	takeOverTasks    = 5
	// lookEvery is how often it is asked who has the shards.
	lookEvery = 2 * time.Millisecond
)

// takeOver takes one replica at a time away, in every way, and measures how soon
// others hold all its shards, and when tasks run that are asked for at that
// moment: what that takes undisturbed is measured first.
func takeOver(ctx context.Context, s *site) error {
	store, err := kvconsul.New(kvconsul.Config{Address: s.cluster.Consul.Address})
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	m := &takeover{site: s, store: store}
	if err := m.round(ctx, "undisturbed", func() (func(context.Context) error, error) { return nil, nil }); err != nil {
		return err
	}
	for _, daemon := range []string{"orchestratord", "allocatord", "schedulerd", "dispatcherd"} {
		for _, way := range []struct {
			name string
			end  func(*process.Process) error
		}{
			{"ended in order", func(p *process.Process) error { return p.Signal(syscall.SIGTERM) }},
			{"killed", (*process.Process).Kill},
			{"stopped", func(p *process.Process) error { return p.Signal(syscall.SIGSTOP) }},
		} {
			name := daemon + " " + way.name
			err := m.round(ctx, name, func() (func(context.Context) error, error) { return m.takeAway(ctx, daemon, name, way.end) })
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// takeover is a site on which replicas die.
type takeover struct {
	*site
	store kv.KV
	made  int
}

// round asks for tasks at the moment at which something happens, and waits until
// they run, and then for what happens to be over.
func (m *takeover) round(ctx context.Context, name string, happens func() (over func(context.Context) error, err error)) error {
	if err := poll(ctx, lookEvery, func() (bool, error) { return m.even(ctx) }); err != nil {
		return fmt.Errorf("wait until the shards are shared out: %w", err)
	}
	if err := m.quiet(ctx); err != nil {
		return err
	}
	watch, err := m.watch(ctx)
	if err != nil {
		return err
	}
	over, err := happens()
	if err != nil {
		return err
	}
	began := time.Now()
	services := map[string]bool{}
	specs := make([]*musterv1.ServiceSpec, takeOverServices)
	for i := range specs {
		m.made++
		specs[i] = spec(fmt.Sprintf("takeover-%d", m.made), takeOverTasks, nil)
		specs[i].Endpoint = &musterv1.EndpointSpec{Ports: []*musterv1.PortConfig{{TargetPort: 80, PublishMode: musterv1.PortConfig_HOST}}}
		services[specs[i].Name] = true
	}
	err = m.each(ctx, len(specs), len(specs), func(ctx context.Context, i int) error {
		_, err := m.create(ctx, specs[i])
		return err
	})
	if err != nil {
		return err
	}
	err = await(watch, func(now *musterv1.Service) bool {
		if now.Status.GetRunningTasks() == takeOverTasks {
			delete(services, now.Spec.GetName())
		}
		return len(services) == 0
	})
	if err != nil {
		return err
	}
	m.result.add(name+": tasks running", time.Since(began).Seconds(), "s")
	for _, spec := range specs {
		if _, err := m.client.RemoveService(ctx, &musterv1.RemoveServiceRequest{Service: spec.Name}); err != nil {
			return fmt.Errorf("remove service %s: %w", spec.Name, err)
		}
	}
	if over != nil {
		return over(ctx)
	}
	return nil
}

// takeAway ends a replica that has shards. The function that it returns waits until
// others have them, says when that was, and brings the replica back.
func (m *takeover) takeAway(ctx context.Context, daemon, name string, end func(*process.Process) error) (func(context.Context) error, error) {
	replica, address, err := m.victim(ctx, daemon)
	if err != nil {
		return nil, err
	}
	p := m.cluster.Process(replica)
	began := time.Now()
	if err := end(p); err != nil {
		return nil, err
	}
	var took time.Duration
	passed := make(chan error, 1)
	go func() {
		err := poll(ctx, lookEvery, func() (bool, error) { return m.passed(ctx, daemon, address) })
		took = time.Since(began)
		passed <- err
	}()
	return func(ctx context.Context) error {
		if err := <-passed; err != nil {
			return fmt.Errorf("wait until the shards are others': %w", err)
		}
		m.result.add(name+": shards are others'", took.Seconds(), "s")
		if err := p.Signal(syscall.SIGCONT); err == nil && !p.Ended() {
			// One that ends in order may not have ended yet.
			return errors.Join(p.Stop(), m.cluster.StartManager(replica))
		}
		return m.cluster.StartManager(replica)
	}, nil
}

// subsystem is the name under which a daemon's shards are shared out.
func subsystem(daemon string) string { return daemon[:len(daemon)-1] }

// victim returns a replica of a daemon that has shards, and its address.
func (m *takeover) victim(ctx context.Context, daemon string) (name, address string, err error) {
	all, err := shards.ReadOwnership(ctx, m.store, "muster", zap.NewNop())
	if err != nil {
		return "", "", err
	}
	for _, h := range all[subsystem(daemon)].Leases {
		for _, name := range m.cluster.Replicas(daemon) {
			if m.cluster.Address(name) == h.Address {
				return name, h.Address, nil
			}
		}
	}
	return "", "", fmt.Errorf("no replica of %s has shards", daemon)
}

// passed reports whether all shards of a daemon are held by others than one.
func (m *takeover) passed(ctx context.Context, daemon, address string) (bool, error) {
	all, err := shards.ReadOwnership(ctx, m.store, "muster", zap.NewNop())
	if err != nil {
		return false, err
	}
	others := 0
	for _, h := range all[subsystem(daemon)].Leases {
		if h.Address != address {
			others++
		}
	}
	return others == shardsOf(daemon), nil
}

// even reports whether all replicas have their share.
func (m *takeover) even(ctx context.Context) (bool, error) {
	all, err := shards.ReadOwnership(ctx, m.store, "muster", zap.NewNop())
	if err != nil {
		return false, err
	}
	for _, daemon := range []string{"orchestratord", "allocatord", "schedulerd", "dispatcherd"} {
		c, held := all[subsystem(daemon)], map[string]int{}
		for _, h := range c.Leases {
			held[h.Address]++
		}
		n := shardsOf(daemon)
		if len(c.Members) != 2 || len(c.Leases) != n {
			return false, nil
		}
		for _, has := range held {
			if has > (n+1)/2 {
				return false, nil
			}
		}
	}
	return true, nil
}

// shardsOf is how many shards a daemon's work has.
func shardsOf(daemon string) int {
	if daemon == "allocatord" {
		return 1
	}
	return shards.DefaultShards
}
