package state

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// The targets of attachments that are no networks of the cluster.
const (
	// HostNetwork is the node's own network.
	HostNetwork = "host"
	// NoNetwork is no network at all.
	NoNetwork = "none"
)

// BlockKey returns the key of a block of a network.
func BlockKey(network string, number uint32) string {
	return fmt.Sprintf("%s/%08x", network, number)
}

// NetworksOf returns the ids of the networks that a service's tasks are attached to, in
// the order of the task spec; the ingress network, which tasks with ports in mode INGRESS
// are on, comes last. The endpoint spec is that of the task, see [Published].
func NetworksOf(s *recordv1.Service, task *musterv1.TaskSpec, endpoint *musterv1.EndpointSpec) []string {
	var ids []string
	for _, n := range task.GetNetworks() {
		if id := n.GetTarget(); id != HostNetwork && id != NoNetwork {
			ids = append(ids, id)
		}
	}
	if id := s.GetIngressNetworkId(); id != "" && PublishesIngress(endpoint) {
		ids = append(ids, id)
	}
	return ids
}

// PublishesIngress reports whether an endpoint spec has a port that every node answers.
func PublishesIngress(endpoint *musterv1.EndpointSpec) bool {
	for _, p := range endpoint.GetPorts() {
		if IsIngress(p) {
			return true
		}
	}
	return false
}

// IsIngress reports whether a port is published in mode INGRESS, the default.
func IsIngress(p *musterv1.PortConfig) bool {
	return p.GetPublishMode() != musterv1.PortConfig_HOST
}

// BlockNumber returns the number of a block from its key.
func BlockNumber(key string) (uint32, bool) {
	_, text, _ := strings.Cut(key, "/")
	number, err := strconv.ParseUint(text, 16, 32)
	return uint32(number), err == nil
}

// SameAddresses reports whether two records say that a network was given the same. They
// may differ in where the allocator searches next.
func SameAddresses(a, b *recordv1.NetworkState) bool {
	return a.GetVni() == b.GetVni() && a.GetError() == b.GetError() &&
		a.GetBlockSize() == b.GetBlockSize() && a.GetTotalBlocks() == b.GetTotalBlocks() &&
		slices.Equal(a.GetSubnets(), b.GetSubnets()) && slices.Equal(a.GetVirtual(), b.GetVirtual()) &&
		slices.Equal(a.GetReserved(), b.GetReserved())
}
