package consul

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/musterhq/muster/internal/kv"
)

const defaultCheckInterval = 250 * time.Millisecond

// register enters the process in the agent's catalog, with a check that dials
// it.
func (s *KV) register(ctx context.Context, service *kv.Service) (check string, err error) {
	interval := service.CheckInterval
	if interval == 0 {
		interval = defaultCheckInterval
	}
	check = service.ID + "-alive"
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err = s.client.Agent().ServiceRegisterOpts(&api.AgentServiceRegistration{
		ID: service.ID, Name: service.Name, Address: service.Address, Port: service.Port,
		Tags: service.Tags, Meta: service.Meta,
		Check: &api.AgentServiceCheck{
			CheckID: check, Name: "process answers", TCP: service.CheckAddress,
			Interval: interval.String(), Timeout: "1s",
			// The process is alive: it is speaking.
			Status: api.HealthPassing,
			// Consul's least is a minute.
			DeregisterCriticalServiceAfter: "1m",
		},
	}, api.ServiceRegisterOpts{}.WithContext(call))
	if err != nil {
		return "", fmt.Errorf("register service %q: %w", service.ID, classify(ctx, err))
	}
	return check, nil
}

// enter notes that a service in the catalog is this session's, and no longer
// that of an earlier one.
func (s *KV) enter(x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.services[x.service] = x
}

// deregister takes a session's service out of the catalog, unless a later
// session has entered it anew: that one is bound to its check.
func (s *KV) deregister(ctx context.Context, x *session) error {
	s.mu.Lock()
	mine := x.service != "" && s.services[x.service] == x
	if mine {
		delete(s.services, x.service)
	}
	s.mu.Unlock()
	if !mine {
		return nil
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := s.client.Agent().ServiceDeregisterOpts(x.service, (&api.QueryOptions{}).WithContext(call)); err != nil {
		return fmt.Errorf("deregister service %q: %w", x.service, classify(ctx, err))
	}
	return nil
}
