package consul

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/musterhq/muster/internal/kv"
)

const (
	defaultCheckInterval = 250 * time.Millisecond
	// leastCheckInterval is Consul's minimum. Consul silently uses it for shorter intervals.
	leastCheckInterval = time.Second
	// maxChecks is the maximum number of checks that dial one process.
	maxChecks = 8
	// defaultSilence is three times the longest report that was measured: 1.0 s, with
	// Consul on two cores kept fully busy by 8 writers and 6 readers of all pages. On a
	// less busy machine, it was 0.2 s.
	defaultSilence = 3 * time.Second
	// addressMeta is the key of the service's metadata with the address that is dialled.
	addressMeta = "check-address"
)

// register registers the process and its checks with the agent, and returns the ids of
// the checks. The first of them is the one for report.
//
// The next dial notices that a process was killed, but a check of Consul dials at most
// once a second. So there are several checks, which Consul starts at random times.
// Together they dial as often as requested, on average, and the first failure ends the
// session.
//
// Dialling a stopped process still succeeds, because its kernel answers. So another
// check notices when the process no longer reports.
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
	ids := []string{service.ID + "-reports"}
	checks := api.AgentServiceChecks{{CheckID: ids[0], Name: "process reports", TTL: silence(service).String()}}
	for i := range n {
		ids = append(ids, fmt.Sprintf("%s-alive-%d", service.ID, i+1))
		checks = append(checks, &api.AgentServiceCheck{
			CheckID: ids[i+1], Name: "process answers", TCP: service.CheckAddress, Interval: interval.String(), Timeout: "1s",
		})
	}
	for _, c := range checks {
		// The process is alive, because it makes this call.
		c.Status = api.HealthPassing
		// Consul's minimum is one minute.
		c.DeregisterCriticalServiceAfter = "1m"
	}
	meta := map[string]string{addressMeta: service.CheckAddress}
	maps.Copy(meta, service.Meta)
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := s.displace(call, service); err != nil {
		return nil, fmt.Errorf("find earlier services at %s: %w", service.CheckAddress, classify(ctx, err))
	}
	err := s.client.Agent().ServiceRegisterOpts(&api.AgentServiceRegistration{
		ID: service.ID, Name: service.Name, Address: service.Address, Port: service.Port,
		Tags: service.Tags, Meta: meta, Checks: checks,
	}, api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(call))
	if err != nil {
		return nil, fmt.Errorf("register service %q: %w", service.ID, classify(ctx, err))
	}
	// A check that existed before may still be failing.
	if err := s.report(call, ids[0]); err != nil {
		return nil, fmt.Errorf("report for service %q: %w", service.ID, classify(ctx, err))
	}
	return ids, nil
}

func silence(service *kv.Service) time.Duration {
	if service.Silence > 0 {
		return service.Silence
	}
	return defaultSilence
}

// displace removes other services at this one's address from the catalog. If a process is
// killed and restarted at once, the checks of its predecessor succeed again, and the
// predecessor would keep its locks.
func (s *KV) displace(ctx context.Context, service *kv.Service) error {
	filter := fmt.Sprintf("Meta[%q] == %q", addressMeta, service.CheckAddress)
	former, err := s.client.Agent().ServicesWithFilterOpts(filter, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return err
	}
	delete(former, service.ID)
	for id := range former {
		if err := s.remove(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// remove removes a service from the agent's catalog. A missing service is not an error.
func (s *KV) remove(ctx context.Context, id string) error {
	err := s.client.Agent().ServiceDeregisterOpts(id, (&api.QueryOptions{}).WithContext(ctx))
	var status api.StatusError
	if errors.As(err, &status) && status.Code == http.StatusNotFound {
		return nil
	}
	return err
}

// report tells the agent that the process is alive.
func (s *KV) report(ctx context.Context, check string) error {
	return s.client.Agent().UpdateTTLOpts(check, "", api.HealthPassing, (&api.QueryOptions{}).WithContext(reporting(ctx)))
}

// keepReporting reports until ctx ends or the session is lost.
func (x *session) keepReporting(ctx context.Context, check string, silence time.Duration) {
	ticker := time.NewTicker(silence / 6)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-x.lost:
			return
		case <-ticker.C:
		}
		call, cancel := context.WithTimeout(ctx, silence/3)
		// The session's watch notices the effect of a failure.
		_ = x.kv.report(call, check)
		cancel()
	}
}

// enter records that a service in the catalog belongs to this session, and no longer to
// an earlier one.
func (s *KV) enter(x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.services[x.service] = x
}

// deregister removes a session's service from the catalog, unless a later session has
// registered it again and is bound to its checks.
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
	call, cancel := context.WithTimeout(pin(ctx, x.host), callTimeout)
	defer cancel()
	if err := s.remove(call, x.service); err != nil {
		return fmt.Errorf("deregister service %q: %w", x.service, classify(ctx, err))
	}
	return nil
}
