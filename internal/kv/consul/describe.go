package consul

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/musterhq/muster/internal/kv"
)

// Describe reads the addresses of the leader and of all servers.
func (s *KV) Describe(ctx context.Context) (kv.Description, error) {
	d := kv.Description{Kind: "consul"}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	q := (&api.QueryOptions{}).WithContext(call)
	var leaderErr, peersErr error
	if d.Leader, leaderErr = s.client.Status().LeaderWithQueryOptions(q); leaderErr != nil {
		leaderErr = fmt.Errorf("ask for the leader: %w", classify(ctx, leaderErr))
	}
	if d.Servers, peersErr = s.client.Status().PeersWithQueryOptions(q); peersErr != nil {
		peersErr = fmt.Errorf("ask for the servers: %w", classify(ctx, peersErr))
	}
	return d, errors.Join(leaderErr, peersErr)
}

// Processes reads the catalog of services with their checks.
func (s *KV) Processes(ctx context.Context, service string) ([]kv.Process, error) {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	entries, _, err := s.client.Health().Service(service, "", false, (&api.QueryOptions{}).WithContext(call))
	if err != nil {
		return nil, fmt.Errorf("processes of service %q: %w", service, classify(ctx, err))
	}
	processes := make([]kv.Process, len(entries))
	for i, e := range entries {
		p := kv.Process{ID: e.Service.ID, Meta: e.Service.Meta, Alive: true}
		p.Address = net.JoinHostPort(e.Service.Address, strconv.Itoa(e.Service.Port))
		for _, c := range e.Checks {
			if c.Status == api.HealthCritical && p.Alive {
				p.Alive = false
				p.Reason = strings.TrimSpace(c.Name + ": " + c.Output)
			}
		}
		processes[i] = p
	}
	return processes, nil
}
