package consul

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/musterhq/muster/internal/kv"
)

const (
	defaultCheckInterval = 250 * time.Millisecond
	// leastCheckInterval is Consul's: it takes a shorter one for this one, and
	// mentions that in its log alone.
	leastCheckInterval = time.Second
	// maxChecks bounds how many checks one process has.
	maxChecks = 8
)

// register enters the process in the agent's catalog, with checks that dial it,
// and returns the ids of the checks.
//
// A killed process is noticed when it is dialled next, and Consul lets a check
// dial once a second at most. So several checks do, each beginning at a moment
// that Consul picks at random: together they dial as often as was asked for, on
// average, and the first that fails ends the session.
func (s *KV) register(ctx context.Context, service *kv.Service) ([]string, error) {
	interval := service.CheckInterval
	if interval <= 0 {
		interval = defaultCheckInterval
	}
	n := 1
	if interval < leastCheckInterval {
		n = min(int((leastCheckInterval+interval-1)/interval), maxChecks)
		interval = leastCheckInterval
	}
	ids := make([]string, n)
	checks := make(api.AgentServiceChecks, n)
	for i := range checks {
		ids[i] = fmt.Sprintf("%s-alive-%d", service.ID, i+1)
		checks[i] = &api.AgentServiceCheck{
			CheckID: ids[i], Name: "process answers", TCP: service.CheckAddress,
			Interval: interval.String(), Timeout: "1s",
			// The process is alive: it is speaking.
			Status: api.HealthPassing,
			// Consul's least is a minute.
			DeregisterCriticalServiceAfter: "1m",
		}
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := s.client.Agent().ServiceRegisterOpts(&api.AgentServiceRegistration{
		ID: service.ID, Name: service.Name, Address: service.Address, Port: service.Port,
		Tags: service.Tags, Meta: service.Meta, Checks: checks,
	}, api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(call))
	if err != nil {
		return nil, fmt.Errorf("register service %q: %w", service.ID, classify(ctx, err))
	}
	return ids, nil
}

// enter notes that a service in the catalog is this session's, and no longer
// that of an earlier one.
func (s *KV) enter(x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.services[x.service] = x
}

// deregister takes a session's service out of the catalog, unless a later
// session has entered it anew: that one is bound to its checks.
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
