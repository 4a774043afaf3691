package control

import (
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/addresses"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// checkSpace refuses a network for which the cluster has no room: there are as many as it
// may have, its address pools have no subnet left that the network needs, or the network
// would take most of a pool.
func (s *Server) checkSpace(tx *store.Tx, spec *musterv1.NetworkSpec) error {
	record, _ := s.Tables.Clusters.Get(tx, state.ClusterID)
	cluster := record.Value.GetSpec()
	var others []store.Entry[*recordv1.Network]
	count := uint32(0)
	for e := range s.Tables.Networks.Scan(tx, "") {
		others = append(others, e)
		if !e.Value.GetSpec().GetIngress() {
			count++
		}
	}
	if most := defaults.MaxNetworks(cluster); count >= most && !spec.Ingress {
		noun := "networks"
		if count == 1 {
			noun = "network"
		}
		return status.Errorf(codes.ResourceExhausted,
			"the cluster has %d %s, and may have %d: remove networks that no service uses (muster network prune), or allow more (muster cluster update --max-networks)", count, noun, most)
	}
	if spec.GetDriver().GetName() == validate.CNIDriver {
		return nil
	}
	var r validate.Report
	for _, ipv4 := range []bool{true, false} {
		s.checkPool(tx, &r, spec, others, poolOf(cluster, ipv4))
	}
	return r.Err()
}

// checkPool checks a network against the address pools of one family.
func (s *Server) checkPool(tx *store.Tx, r *validate.Report, spec *musterv1.NetworkSpec, others []store.Entry[*recordv1.Network], pool subnetPool) {
	given := pool.family(givenSubnets(spec))
	if len(given) > 0 {
		if taken := pool.count(given); taken > pool.size()/2 {
			r.Invalid("spec.ipam.configs", "subnet %s covers most of the cluster's address pool (%s), from which networks without a subnet get theirs; choose a smaller one or one outside the pool, or change the pool (muster cluster update --default-addr-pool)",
				given[0], pool)
		}
		return
	}
	if !pool.wanted(spec) {
		return
	}
	var used []netip.Prefix
	waiting := 0.0
	for _, e := range others {
		subnets := pool.family(s.subnets(tx, e.Key, e.Value.Spec))
		if used = append(used, subnets...); len(subnets) == 0 && pool.wanted(e.Value.Spec) && e.Value.GetSpec().GetDriver().GetName() != validate.CNIDriver {
			waiting++
		}
	}
	if pool.count(used)+waiting >= pool.size() {
		r.Waiting("spec.ipam.configs", "all subnets of the cluster's address pool (%s) are in use; remove networks that no service uses (muster network prune), give the network a subnet (--subnet), or add a pool (muster cluster update --default-addr-pool)", pool)
	}
}

// subnetPool is the address pools of one family.
type subnetPool struct {
	ipv4  bool
	parts []addresses.Pool
}

func poolOf(cluster *musterv1.ClusterSpec, ipv4 bool) subnetPool {
	return subnetPool{ipv4, slices.DeleteFunc(addresses.Pools(cluster), func(p addresses.Pool) bool { return p.Base.Addr().Is4() != ipv4 })}
}

func (p subnetPool) String() string {
	bases := make([]string, len(p.parts))
	for i, part := range p.parts {
		bases[i] = part.Base.String()
	}
	return strings.Join(bases, ", ")
}

// wanted reports whether a network needs addresses of the family.
func (p subnetPool) wanted(spec *musterv1.NetworkSpec) bool { return p.ipv4 || spec.GetIpv6Enabled() }

// family returns the subnets that are of the family.
func (p subnetPool) family(subnets []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(subnets, func(s netip.Prefix) bool { return s.Addr().Is4() != p.ipv4 })
}

// size returns how many subnets the pools have.
func (p subnetPool) size() float64 {
	sum := 0.0
	for _, part := range p.parts {
		sum += part.Size()
	}
	return sum
}

// count returns how many subnets of the pools overlap others.
func (p subnetPool) count(others []netip.Prefix) float64 {
	sum := 0.0
	for _, part := range p.parts {
		sum += part.Taken(others)
	}
	return sum
}
