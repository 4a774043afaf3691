package control

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

func (s *Server) networkKind() *kind[*recordv1.Network, *objects.Network, *musterv1.Network] {
	return &kind[*recordv1.Network, *objects.Network, *musterv1.Network]{
		Backend: s.Backend, name: "network", table: s.Tables.Networks,
		find: (*objects.Reader).FindNetwork, ascend: (*objects.Reader).Networks, message: (*objects.Reader).NetworkMessage,
		recordName: func(r *recordv1.Network) string { return r.GetSpec().GetName() },
	}
}

// CreateNetwork creates a network. Its addresses follow: the allocator gives them.
func (s *Server) CreateNetwork(ctx context.Context, req *musterv1.CreateNetworkRequest) (*musterv1.CreateNetworkResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	if err := s.validate.Network(req.Spec, s.executors()); err != nil {
		return nil, err
	}
	now := time.Now().UnixMilli()
	record := &recordv1.Network{Spec: req.Spec, CreatedAt: now, UpdatedAt: now}
	id, err := s.networks.create(ctx, func(tx *store.Tx, _ string) (*recordv1.Network, error) {
		if err := s.checkStack(tx, req.Spec.Labels); err != nil {
			return nil, err
		}
		if err := s.checkSpace(tx, req.Spec); err != nil {
			return nil, err
		}
		if req.Spec.Ingress {
			if err := s.checkIngress(tx, req.Spec); err != nil {
				return nil, err
			}
		}
		return record, nil
	})
	if err != nil {
		return nil, err
	}
	m, err := s.networks.shown(ctx, id)
	return &musterv1.CreateNetworkResponse{Network: m}, err
}

// GetNetwork returns one network, with its blocks and services.
func (s *Server) GetNetwork(ctx context.Context, req *musterv1.GetNetworkRequest) (*musterv1.GetNetworkResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	m, err := resolve(ctx, s.networks, req.Network, (*objects.Reader).WholeNetwork)
	return &musterv1.GetNetworkResponse{Network: m}, err
}

// ListNetworks returns a page of networks.
func (s *Server) ListNetworks(ctx context.Context, req *musterv1.ListNetworksRequest) (*musterv1.ListNetworksResponse, error) {
	networks, next, err := s.networks.list(ctx, req, nil)
	if err != nil {
		return nil, err
	}
	return &musterv1.ListNetworksResponse{Networks: networks, NextPageToken: next}, nil
}

// RemoveNetwork removes a network that no service uses.
func (s *Server) RemoveNetwork(ctx context.Context, req *musterv1.RemoveNetworkRequest) (*musterv1.RemoveNetworkResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	err := s.networks.remove(ctx, req.Network, func(tx *store.Tx, id string, e store.Entry[*recordv1.Network]) error {
		return s.unused(tx, "network", e.Value.GetSpec().GetName(), func(service *recordv1.Service, task *musterv1.TaskSpec, endpoint *musterv1.EndpointSpec) bool {
			return objects.UsesNetwork(service, task, endpoint, id)
		})
	})
	if err != nil {
		return nil, err
	}
	return &musterv1.RemoveNetworkResponse{}, nil
}

// findIngress returns the ingress network. The id is empty if there is none.
func (s *Server) findIngress(tx *store.Tx) (id string, spec *musterv1.NetworkSpec) {
	for e := range s.Tables.Networks.Scan(tx, "") {
		if e.Value.GetSpec().GetIngress() {
			id, spec = e.Key, e.Value.Spec
		}
	}
	return id, spec
}

// checkIngress refuses a second ingress network, and one whose subnet another network
// has. Services with published ports are on the ingress network beside their own, and no
// task can be on two networks with the same addresses.
func (s *Server) checkIngress(tx *store.Tx, spec *musterv1.NetworkSpec) error {
	if id, other := s.findIngress(tx); id != "" {
		return status.Errorf(codes.AlreadyExists,
			"there is an ingress network already: %q; a cluster has one: remove it first, when no service publishes ports through it", other.GetName())
	}
	var report validate.Report
	for e := range s.Tables.Networks.Scan(tx, "") {
		if a, b, ok := overlap(givenSubnets(spec), s.subnets(tx, e.Key, e.Value.Spec)); ok {
			report.Invalid("spec.ipam.configs", "subnet %s overlaps with %s of network %q: the ingress network must have addresses of its own", a, b, e.Value.Spec.GetName())
		}
	}
	return report.Err()
}

// ensureIngress returns the id of the ingress network, and creates it if there is none.
func (s *Server) ensureIngress(tx *store.Tx, now time.Time) (string, error) {
	if id, _ := s.findIngress(tx); id != "" {
		return id, nil
	}
	id := state.NewID()
	if err := s.networks.takeName(tx, id, validate.IngressNetwork); err != nil {
		return "", err
	}
	s.Tables.Networks.Put(tx, id, &recordv1.Network{
		Spec:      &musterv1.NetworkSpec{Name: validate.IngressNetwork, Ingress: true},
		CreatedAt: now.UnixMilli(), UpdatedAt: now.UnixMilli(),
	})
	return id, nil
}

// subnets returns the subnets that a network has, or will have because its spec names
// them.
func (s *Server) subnets(tx *store.Tx, id string, spec *musterv1.NetworkSpec) []netip.Prefix {
	if e, ok := s.Tables.NetworkStates.Get(tx, id); ok && len(e.Value.Subnets) > 0 {
		return parsePrefixes(e.Value.Subnets)
	}
	return givenSubnets(spec)
}

func givenSubnets(spec *musterv1.NetworkSpec) []netip.Prefix {
	var subnets []string
	for _, c := range spec.GetIpam().GetConfigs() {
		subnets = append(subnets, c.Subnet)
	}
	return parsePrefixes(subnets)
}

// parsePrefixes leaves out what is no prefix: records were checked when they were written.
func parsePrefixes(texts []string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		if p, err := netip.ParsePrefix(text); err == nil {
			all = append(all, p)
		}
	}
	return all
}

// overlap returns the first two subnets of two networks that have addresses in common.
func overlap(a, b []netip.Prefix) (of, with netip.Prefix, ok bool) {
	for _, p := range a {
		if i := slices.IndexFunc(b, p.Overlaps); i >= 0 {
			return p, b[i], true
		}
	}
	return of, with, false
}
