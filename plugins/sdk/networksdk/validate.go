package networksdk

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"strings"
	"unicode"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Limits of what a request may hold.
const (
	// maxName is the length of the longest name that DNS can carry, in bytes.
	maxName = 253
	maxPath = 4096
	maxVNI  = 1<<24 - 1
	// minMTU is the least that IPv4 asks for.
	minMTU = 68
)

// idPattern matches ids. They can be file names.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$`)

func checkID(id string) error {
	switch {
	case id == "":
		return errors.New("is empty")
	case !idPattern.MatchString(id):
		return fmt.Errorf("%.140q: want at most 128 letters, digits, \".\", \"_\" and \"-\", not beginning with \".\"", id)
	}
	return nil
}

func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("is empty")
	case len(name) > maxName:
		return fmt.Errorf("has %d bytes, at most %d are allowed", len(name), maxName)
	case strings.ContainsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }):
		return fmt.Errorf("%q holds white space or control characters", name)
	}
	return nil
}

// checkNames checks a list of names and names the first that is wrong.
func checkNames(names []string) error {
	for i, name := range names {
		if err := checkName(name); err != nil {
			return fmt.Errorf("[%d] %w", i, err)
		}
	}
	return nil
}

// parseAddress reads an address without a zone. An IPv4 address must not be written
// as an IPv6 one: a plugin could not compare it.
func parseAddress(text string) (netip.Addr, error) {
	address, err := netip.ParseAddr(text)
	if err != nil || address.Zone() != "" || address.Is4In6() {
		return netip.Addr{}, fmt.Errorf("%.64q: want an IP address such as 10.64.0.7", text)
	}
	return address, nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil || prefix != prefix.Masked() || prefix.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%.64q: want a network in CIDR notation such as 10.64.0.0/16", text)
	}
	return prefix, nil
}

func parsePrefixes(texts []string) ([]netip.Prefix, error) {
	prefixes := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		var err error
		if prefixes[i], err = parsePrefix(text); err != nil {
			return nil, fmt.Errorf("[%d] %w", i, err)
		}
	}
	return prefixes, nil
}

// checkPair checks a list of addresses: at most one for each of IPv4 and IPv6.
func checkPair(addresses []string) error {
	var seen [2]bool
	for i, text := range addresses {
		address, err := parseAddress(text)
		if err != nil {
			return fmt.Errorf("[%d] %w", i, err)
		}
		if seen[family(address)] {
			return fmt.Errorf("[%d] %q: want at most one address for each of IPv4 and IPv6", i, text)
		}
		seen[family(address)] = true
	}
	return nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// within checks that valid addresses are in one of the subnets, if there are any.
func within(addresses []string, subnets []netip.Prefix) error {
	for i, text := range addresses {
		if address := netip.MustParseAddr(text); !inside(netip.PrefixFrom(address, address.BitLen()), subnets) {
			return fmt.Errorf("[%d] %q is outside of the network's subnets", i, text)
		}
	}
	return nil
}

func inside(part netip.Prefix, subnets []netip.Prefix) bool {
	for _, subnet := range subnets {
		if subnet.Bits() <= part.Bits() && subnet.Contains(part.Addr()) {
			return true
		}
	}
	return len(subnets) == 0
}

// checkEndpoint checks where a node can be reached for traffic between nodes.
func checkEndpoint(address string, port uint32) error {
	if _, err := parseAddress(address); err != nil {
		return fmt.Errorf("data_path_address %w", err)
	}
	if port < 1 || port > 65535 {
		return fmt.Errorf("data_path_port is %d: want a number from 1 to 65535", port)
	}
	return nil
}

// checkNode checks the node. Drivers without traffic between nodes need no data path.
func checkNode(node *networkv1.Node) error {
	if err := checkID(node.GetId()); err != nil {
		return fmt.Errorf("node.id %w", err)
	}
	if node.GetDataPathAddress() == "" && node.GetDataPathPort() == 0 {
		return nil
	}
	if err := checkEndpoint(node.GetDataPathAddress(), node.GetDataPathPort()); err != nil {
		return fmt.Errorf("node.%w", err)
	}
	return nil
}

// checkNetwork checks a network and returns its subnets.
func checkNetwork(n *networkv1.Network) ([]netip.Prefix, error) {
	if err := checkID(n.GetId()); err != nil {
		return nil, fmt.Errorf("id %w", err)
	}
	if err := checkName(n.GetName()); err != nil {
		return nil, fmt.Errorf("name %w", err)
	}
	if err := checkName(n.GetDriver()); err != nil {
		return nil, fmt.Errorf("driver %w", err)
	}
	if n.GetVni() > maxVNI {
		return nil, fmt.Errorf("vni is %d: want at most %d", n.GetVni(), maxVNI)
	}
	if mtu := n.GetMtu(); mtu != 0 && (mtu < minMTU || mtu > 65535) {
		return nil, fmt.Errorf("mtu is %d: want a number from %d to 65535, or 0", mtu, minMTU)
	}
	subnets, err := parsePrefixes(n.GetSubnets())
	if err != nil {
		return nil, fmt.Errorf("subnets%w", err)
	}
	if len(subnets) > 2 || (len(subnets) == 2 && family(subnets[0].Addr()) == family(subnets[1].Addr())) {
		return nil, errors.New("subnets: want at most one for each of IPv4 and IPv6")
	}
	blocks, err := parsePrefixes(n.GetBlocks())
	if err != nil {
		return nil, fmt.Errorf("blocks%w", err)
	}
	for i, block := range blocks {
		if !inside(block, subnets) {
			return nil, fmt.Errorf("blocks[%d] %s is outside of the network's subnets", i, block)
		}
	}
	if err := checkPair(n.GetNodeAddresses()); err != nil {
		return nil, fmt.Errorf("node_addresses%w", err)
	}
	if err := within(n.GetNodeAddresses(), blocks); err != nil {
		return nil, fmt.Errorf("node_addresses%w", err)
	}
	return subnets, nil
}

func checkPeer(p *networkv1.Peer) error {
	if err := checkID(p.GetNodeId()); err != nil {
		return fmt.Errorf("node_id %w", err)
	}
	if err := checkEndpoint(p.GetDataPathAddress(), p.GetDataPathPort()); err != nil {
		return err
	}
	if p.GetEncryptedPort() > 65535 {
		return fmt.Errorf("encrypted_port is %d: want a number from 1 to 65535, or 0", p.GetEncryptedPort())
	}
	if _, err := parsePrefixes(p.GetBlocks()); err != nil {
		return fmt.Errorf("blocks%w", err)
	}
	return nil
}

// checkService checks a service and fills in its defaults.
func checkService(s *networkv1.Service, subnets []netip.Prefix) error {
	if err := checkID(s.GetId()); err != nil {
		return fmt.Errorf("id %w", err)
	}
	if err := checkName(s.GetName()); err != nil {
		return fmt.Errorf("name %w", err)
	}
	if err := checkNames(s.GetAliases()); err != nil {
		return fmt.Errorf("aliases%w", err)
	}
	switch s.GetMode() {
	case musterv1.EndpointSpec_MODE_UNSPECIFIED:
		s.Mode = ModeVIP
	case ModeVIP, ModeDNSRR:
	default:
		return fmt.Errorf("mode is %d, which this plugin does not know", s.GetMode())
	}
	if err := checkPair(s.GetVirtualIps()); err != nil {
		return fmt.Errorf("virtual_ips%w", err)
	}
	if err := within(s.GetVirtualIps(), subnets); err != nil {
		return fmt.Errorf("virtual_ips%w", err)
	}
	for i, port := range s.GetPorts() {
		if err := checkPort(port); err != nil {
			return fmt.Errorf("ports[%d].%w", i, err)
		}
	}
	return nil
}

// checkPort checks a port and fills in its defaults.
func checkPort(p *musterv1.PortConfig) error {
	if p == nil {
		return errors.New("target_port is missing")
	}
	switch p.GetProtocol() {
	case musterv1.PortConfig_PROTOCOL_UNSPECIFIED:
		p.Protocol = musterv1.PortConfig_TCP
	case musterv1.PortConfig_TCP, musterv1.PortConfig_UDP, musterv1.PortConfig_SCTP:
	default:
		return fmt.Errorf("protocol is %d, which this plugin does not know", p.GetProtocol())
	}
	switch p.GetPublishMode() {
	case musterv1.PortConfig_PUBLISH_MODE_UNSPECIFIED:
		p.PublishMode = musterv1.PortConfig_INGRESS
	case musterv1.PortConfig_INGRESS, musterv1.PortConfig_HOST:
	default:
		return fmt.Errorf("publish_mode is %d, which this plugin does not know", p.GetPublishMode())
	}
	switch p.GetExternalTraffic() {
	case musterv1.PortConfig_EXTERNAL_TRAFFIC_UNSPECIFIED:
		p.ExternalTraffic = musterv1.PortConfig_CLUSTER
	case musterv1.PortConfig_CLUSTER, musterv1.PortConfig_LOCAL:
	default:
		return fmt.Errorf("external_traffic is %d, which this plugin does not know", p.GetExternalTraffic())
	}
	if target := p.GetTargetPort(); target < 1 || target > 65535 {
		return fmt.Errorf("target_port is %d: want a number from 1 to 65535", target)
	}
	if published := p.GetPublishedPort(); published > 65535 {
		return fmt.Errorf("published_port is %d: want at most 65535", published)
	}
	return nil
}

func checkBackend(b *networkv1.Backend, subnets []netip.Prefix) error {
	if err := checkID(b.GetTaskId()); err != nil {
		return fmt.Errorf("task_id %w", err)
	}
	if err := checkID(b.GetNodeId()); err != nil {
		return fmt.Errorf("node_id %w", err)
	}
	if len(b.GetAddresses()) == 0 {
		return errors.New("addresses is empty")
	}
	if err := checkPair(b.GetAddresses()); err != nil {
		return fmt.Errorf("addresses%w", err)
	}
	if err := within(b.GetAddresses(), subnets); err != nil {
		return fmt.Errorf("addresses%w", err)
	}
	return nil
}

// checkAttach checks what can be said of a request without knowing the networks. Only a
// plugin that makes namespaces may be asked to.
func checkAttach(r *networkv1.AttachRequest, makes bool) error {
	if err := checkID(r.GetTaskId()); err != nil {
		return fmt.Errorf("task_id %w", err)
	}
	if err := checkName(r.GetTaskName()); err != nil {
		return fmt.Errorf("task_name %w", err)
	}
	if err := checkID(r.GetServiceId()); err != nil {
		return fmt.Errorf("service_id %w", err)
	}
	if err := checkName(r.GetServiceName()); err != nil {
		return fmt.Errorf("service_name %w", err)
	}
	if ns := r.GetNamespace(); ns == "" && !makes {
		return errors.New("namespace is empty: this plugin makes no namespaces, so that only executors which provide them (network.provides) can use its networks")
	} else if ns != "" && (!path.IsAbs(ns) || path.Clean(ns) != ns || len(ns) > maxPath || strings.ContainsRune(ns, 0)) {
		return fmt.Errorf("namespace %.140q: want an absolute path", ns)
	}
	if len(r.GetAttachments()) == 0 {
		return errors.New("attachments is empty")
	}
	seen := map[string]bool{}
	for i, a := range r.GetAttachments() {
		if err := checkID(a.GetNetworkId()); err != nil {
			return fmt.Errorf("attachments[%d].network_id %w", i, err)
		}
		if seen[a.GetNetworkId()] {
			return fmt.Errorf("attachments[%d].network_id %q is named twice", i, a.GetNetworkId())
		}
		seen[a.GetNetworkId()] = true
		if err := checkPair(a.GetAddresses()); err != nil {
			return fmt.Errorf("attachments[%d].addresses%w", i, err)
		}
		if err := checkNames(a.GetAliases()); err != nil {
			return fmt.Errorf("attachments[%d].aliases%w", i, err)
		}
	}
	for i, port := range r.GetPorts() {
		if err := checkPort(port); err != nil {
			return fmt.Errorf("ports[%d].%w", i, err)
		}
		if port.GetPublishMode() != musterv1.PortConfig_HOST || port.GetPublishedPort() == 0 {
			return fmt.Errorf("ports[%d]: want publish_mode HOST and a published_port", i)
		}
	}
	return nil
}
