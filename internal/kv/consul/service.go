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
	// leastCheckInterval is Consul's: it takes a shorter one for this one, and
	// mentions that in its log alone.
	leastCheckInterval = time.Second
	// maxChecks bounds how many checks dial one process.
	maxChecks = 8
	// defaultSilence is three times the longest that a report took (1.0 s) of
	// Consul on two cores that 8 writers and 6 readers of all pages kept fully
	// busy; on a machine that was merely busy it was 0.2 s.
	defaultSilence = 3 * time.Second
	// addressMeta is the service's metadata that names the address that is dialled.
	addressMeta = "check-address"
)

// register enters the process in the agent's catalog, with checks, and returns
// their ids. The first of them is for report.
//
// A killed process is noticed when it is dialled next, and Consul lets a check
// dial once a second at most. So several checks do, each beginning at a moment
// that Consul picks at random: together they dial as often as was asked for, on
// average, and the first that fails ends the session.
//
// Dialling a stopped process still succeeds, because its kernel answers. One more
// check notices that it does not report.
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
		// The process is alive: it is speaking.
		c.Status = api.HealthPassing
		// Consul's least is a minute.
		c.DeregisterCriticalServiceAfter = "1m"
	}
	meta := map[string]string{addressMeta: service.CheckAddress}
	maps.Copy(meta, service.Meta)
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := s.displace(call, service); err != nil {
		return nil, fmt.Errorf("look who was at %s before: %w", service.CheckAddress, classify(ctx, err))
	}
	err := s.client.Agent().ServiceRegisterOpts(&api.AgentServiceRegistration{
		ID: service.ID, Name: service.Name, Address: service.Address, Port: service.Port,
		Tags: service.Tags, Meta: meta, Checks: checks,
	}, api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(call))
	if err != nil {
		return nil, fmt.Errorf("register service %q: %w", service.ID, classify(ctx, err))
	}
	// A check that was there already, failing, is still.
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

// displace takes services out of the catalog that were at this one's address: a
// process that was killed and started again at once would otherwise answer for
// its former self, whose locks it waits for.
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

// remove takes a service out of the agent's catalog. That it is not there is no
// error.
func (s *KV) remove(ctx context.Context, id string) error {
	err := s.client.Agent().ServiceDeregisterOpts(id, (&api.QueryOptions{}).WithContext(ctx))
	var status api.StatusError
	if errors.As(err, &status) && status.Code == http.StatusNotFound {
		return nil
	}
	return err
}

// report tells the agent that the process runs.
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
		// What comes of it if it fails is seen by the session's watch.
		_ = x.kv.report(call, check)
		cancel()
	}
}

// enter notes that a service in the catalog is this session's, and no longer
// that of an earlier one.
func (s *KV) enter(x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.services[x.service] = x
}

// deregister takes a session's service out of the catalog, unless a later
// session has entered it again: that one is bound to its checks.
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
