package main

import (
	"context"
	"fmt"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/stack"
)

// deployStack deploys a stack of services with one task each, a config and a network, deploys
// it again without a change, and removes it.
func deployStack(ctx context.Context, s *site) error {
	watch, err := s.watch(ctx)
	if err != nil {
		return err
	}
	spec := benchStack(s.result.Tasks)
	began := time.Now()
	if _, err := stack.Deploy(ctx, s.client, spec, stack.Options{}); err != nil {
		return fmt.Errorf("deploy: %w", err)
	}
	s.result.add("deployed", time.Since(began).Seconds(), "s")
	running := map[string]bool{}
	err = await(watch, func(now *musterv1.Service) bool {
		if now.Status.GetConverged() {
			running[now.Id] = true
		}
		return len(running) == s.result.Tasks
	})
	if err != nil {
		return err
	}
	s.result.add("all running", time.Since(began).Seconds(), "s")
	began = time.Now()
	again, err := stack.Deploy(ctx, s.client, spec, stack.Options{Prune: true})
	if err != nil {
		return fmt.Errorf("deploy again: %w", err)
	}
	if len(again.Changes) > 0 {
		return fmt.Errorf("the second deployment made %d changes", len(again.Changes))
	}
	s.result.add("deployed again", time.Since(began).Seconds(), "s")
	began = time.Now()
	if err := stack.Remove(ctx, s.client, spec.Name, nil); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	s.result.add("removed", time.Since(began).Seconds(), "s")
	return nil
}

func benchStack(services int) *musterv1.StackSpec {
	const name = "bench"
	all := &musterv1.StackSpec{
		Name:     name,
		Networks: []*musterv1.NetworkSpec{{Name: name + "_default"}},
		Configs:  []*musterv1.ConfigSpec{{Name: name + "_config", Data: make([]byte, 10<<10)}},
	}
	for i := range services {
		all.Services = append(all.Services, spec(fmt.Sprintf("%s_s%d", name, i), 1, payload(i)))
	}
	return all
}
