package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// api calls the control API. Its services have no tasks, so that it is the API
// that is measured.
func api(ctx context.Context, s *site) error {
	n := s.result.Tasks
	versions := make([]uint64, n)
	create := func(ctx context.Context, i int) error {
		service, err := s.create(ctx, spec(serviceName(i), 0, nil))
		if err == nil {
			versions[i] = service.Meta.GetVersion()
		}
		return err
	}
	remove := func(ctx context.Context, i int) error {
		_, err := s.client.RemoveService(ctx, &musterv1.RemoveServiceRequest{Service: serviceName(i)})
		return err
	}
	get := func(ctx context.Context, i int) error {
		_, err := s.client.GetService(ctx, &musterv1.GetServiceRequest{Service: serviceName(i)})
		return err
	}
	list := func(ctx context.Context, _ int) error {
		resp, err := s.client.ListServices(ctx, &musterv1.ListServicesRequest{PageSize: 1000})
		if err == nil && len(resp.Services) != min(n, 1000) {
			err = fmt.Errorf("%d services are listed of %d", len(resp.Services), n)
		}
		return err
	}
	update := func(ctx context.Context, i int) error {
		resp, err := s.client.UpdateService(ctx, &musterv1.UpdateServiceRequest{
			Service: serviceName(i), Version: versions[i], Spec: spec(serviceName(i), 0, payload(int(versions[i]))),
		})
		if err == nil {
			versions[i] = resp.Service.Meta.GetVersion()
		}
		return err
	}
	for _, c := range []struct {
		name    string
		calls   int
		clients int
		do      func(context.Context, int) error
	}{
		{"create, 1 client", n, 1, create},
		{"get, 1 client", n, 1, get},
		{"list, 1 client", 100, 1, list},
		{"update, 1 client", n, 1, update},
		{"remove, 1 client", n, 1, remove},
		{"create, 32 clients", n, clients, create},
		{"get, 32 clients", n, clients, get},
		{"list, 32 clients", 320, clients, list},
		{"update, 32 clients", n, clients, update},
		{"remove, 32 clients", n, clients, remove},
	} {
		if err := s.calls(ctx, c.name, c.calls, c.clients, c.do); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// calls measures calls: how many a second, and how long each takes.
func (s *site) calls(ctx context.Context, name string, n, atOnce int, do func(context.Context, int) error) error {
	took := make([]time.Duration, n)
	began := time.Now()
	err := s.each(ctx, n, atOnce, func(ctx context.Context, i int) error {
		began := time.Now()
		err := do(ctx, i)
		took[i] = time.Since(began)
		return err
	})
	if err != nil {
		return err
	}
	s.result.add(name, float64(n)/time.Since(began).Seconds(), "/s")
	slices.Sort(took)
	s.result.add(name+", median", took[n/2].Seconds()*1e3, "ms")
	s.result.add(name+", 99 of 100", took[n*99/100].Seconds()*1e3, "ms")
	return nil
}
