package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// idleTime is how long a cluster is watched that does nothing.
const idleTime = 20 * time.Second

// idle measures what a cluster uses while nothing happens.
func idle(ctx context.Context, s *site) error {
	if s.result.Tasks > 0 {
		watch, err := s.watch(ctx)
		if err != nil {
			return err
		}
		if _, err := s.create(ctx, spec("bench", s.result.Tasks, nil)); err != nil {
			return err
		}
		if err := await(watch, func(now *musterv1.Service) bool { return now.Status.GetConverged() }); err != nil {
			return err
		}
		if err := s.quiet(ctx); err != nil {
			return err
		}
	}
	writes, err := s.consulWrites()
	if err != nil {
		return err
	}
	before, err := s.usage()
	if err != nil {
		return err
	}
	began := time.Now()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(idleTime):
	}
	took := time.Since(began).Seconds()
	after, err := s.usage()
	if err != nil {
		return err
	}
	later, err := s.consulWrites()
	if err != nil {
		return err
	}
	sum, memory := 0.0, 0.0
	for _, name := range slices.Sorted(maps.Keys(after)) {
		cpu := 100 * (after[name].CPU - before[name].CPU).Seconds() / took
		s.result.add("CPU "+name, cpu, "% of a core")
		if name != "workers" {
			sum += cpu
			memory += float64(after[name].PeakMemory)
		}
	}
	s.result.add("CPU managers and Consul", sum, "% of a core")
	s.result.add("memory managers and Consul", memory/(1<<20), "MiB")
	if s.cluster.Consul != nil {
		s.result.add("Consul writes", float64(later-writes)/took, "/s")
	}
	return nil
}

// consulWrites is how many entries Consul's log has had so far; 0 where there is
// no Consul. Consul writes a few by itself.
func (s *site) consulWrites() (uint64, error) {
	if s.cluster.Consul == nil {
		return 0, nil
	}
	client, err := consulapi.NewClient(&consulapi.Config{Address: s.cluster.Consul.Address})
	if err != nil {
		return 0, fmt.Errorf("ask Consul: %w", err)
	}
	self, err := client.Agent().Self()
	if err != nil {
		return 0, fmt.Errorf("ask Consul: %w", err)
	}
	raft, _ := self["Stats"]["raft"].(map[string]any)
	index, _ := raft["applied_index"].(string)
	n, err := strconv.ParseUint(index, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("ask Consul: applied index: %w", err)
	}
	return n, nil
}
