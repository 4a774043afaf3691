package convert

import (
	"maps"
	"net/netip"
	"strconv"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Options of Docker's drivers that are fields of Muster's networks.
const (
	optionEncrypted = "encrypted"
	optionMTU       = "com.docker.network.driver.mtu"
	// optionVXLAN is only shown.
	optionVXLAN = "com.docker.network.driver.overlay.vxlanid_list"
)

// ScopeSwarm is the scope of networks that the cluster has.
const ScopeSwarm = "swarm"

const (
	overlayDriver = "overlay"
	defaultIPAM   = "default"
)

// NetworkSpec returns Muster's spec for what Docker's clients send to create a network.
func NetworkSpec(r network.CreateRequest) (*musterv1.NetworkSpec, error) {
	f := &faults{}
	out := &musterv1.NetworkSpec{
		Name: r.Name, Labels: r.Labels, Ipv6Enabled: value(r.EnableIPv6), Internal: r.Internal, Attachable: r.Attachable, Ingress: r.Ingress,
	}
	if r.Scope != "" && r.Scope != ScopeSwarm {
		f.add("Scope", "invalid value %q: the cluster's networks have scope swarm", r.Scope)
	}
	if r.EnableIPv4 != nil && !*r.EnableIPv4 {
		f.add("EnableIPv4", "networks without IPv4 are not supported")
	}
	if r.ConfigOnly {
		f.add("ConfigOnly", "networks that only hold settings are not supported")
	}
	if r.ConfigFrom != nil && r.ConfigFrom.Network != "" {
		f.add("ConfigFrom", "networks do not take their settings from others")
	}
	options := maps.Clone(r.Options)
	if v, ok := options[optionEncrypted]; ok {
		delete(options, optionEncrypted)
		on, err := strconv.ParseBool(v)
		if err != nil && v != "" {
			f.add("Options["+optionEncrypted+"]", "invalid value %q: want true or false", v)
		}
		out.Encrypted = on || v == ""
	}
	if v, ok := options[optionMTU]; ok {
		delete(options, optionMTU)
		mtu, err := strconv.ParseUint(v, 10, 32)
		if err != nil {
			f.add("Options["+optionMTU+"]", "invalid value %q: want a number of bytes", v)
		}
		out.Mtu = uint32(mtu)
	}
	if r.Driver != "" || len(options) > 0 {
		out.Driver = &musterv1.Driver{Name: r.Driver, Options: options}
	}
	if i := r.IPAM; i != nil {
		out.Ipam = ipam(*i)
	}
	return out, f.err()
}

func ipam(i network.IPAM) *musterv1.IPAMOptions {
	out := &musterv1.IPAMOptions{}
	if i.Driver != "" && i.Driver != defaultIPAM || len(i.Options) > 0 {
		out.Driver = &musterv1.Driver{Name: i.Driver, Options: i.Options}
	}
	for _, c := range i.Config {
		one := &musterv1.IPAMConfig{Subnet: text(c.Subnet), Range: text(c.IPRange), Gateway: text(c.Gateway)}
		for name, a := range c.AuxAddress {
			if one.Reserved == nil {
				one.Reserved = map[string]string{}
			}
			one.Reserved[name] = text(a)
		}
		out.Configs = append(out.Configs, one)
	}
	if out.Driver == nil && len(out.Configs) == 0 {
		return nil
	}
	return out
}

// DockerNetwork returns a network as Docker shows it.
func DockerNetwork(n *musterv1.Network) network.Network {
	s := n.GetSpec()
	out := network.Network{
		Name: s.GetName(), ID: n.GetId(), Created: instant(n.GetMeta().GetCreatedAt()), Scope: ScopeSwarm, Driver: driverName(s),
		EnableIPv4: true, EnableIPv6: s.GetIpv6Enabled(), Internal: s.GetInternal(), Attachable: s.GetAttachable(), Ingress: s.GetIngress(),
		Options: options(n), Labels: labelsOf(s.GetLabels()),
		IPAM: network.IPAM{Driver: defaultIPAM, Config: []network.IPAMConfig{}},
	}
	if d := ipamOf(n).GetDriver(); d.GetName() != "" {
		out.IPAM.Driver, out.IPAM.Options = d.GetName(), d.GetOptions()
	}
	for _, c := range ipamOf(n).GetConfigs() {
		one := network.IPAMConfig{Subnet: prefix(c.Subnet), IPRange: prefix(c.Range)}
		one.Gateway, _ = netip.ParseAddr(c.Gateway)
		for name, a := range c.Reserved {
			if address, err := netip.ParseAddr(a); err == nil {
				if one.AuxAddress == nil {
					one.AuxAddress = map[string]netip.Addr{}
				}
				one.AuxAddress[name] = address
			}
		}
		out.IPAM.Config = append(out.IPAM.Config, one)
	}
	return out
}

// ipamOf returns the addresses that a network has, or else those that it asks for.
func ipamOf(n *musterv1.Network) *musterv1.IPAMOptions {
	if n.GetIpam() != nil {
		return n.GetIpam()
	}
	return n.GetSpec().GetIpam()
}

func driverName(s *musterv1.NetworkSpec) string {
	if name := s.GetDriver().GetName(); name != "" {
		return name
	}
	return overlayDriver
}

// options returns what Docker writes as options of the driver.
func options(n *musterv1.Network) map[string]string {
	out := map[string]string{}
	maps.Copy(out, n.GetSpec().GetDriver().GetOptions())
	if n.GetSpec().GetEncrypted() {
		out[optionEncrypted] = "true"
	}
	if mtu := n.GetSpec().GetMtu(); mtu != 0 {
		out[optionMTU] = strconv.FormatUint(uint64(mtu), 10)
	}
	if vni := n.GetStatus().GetVni(); vni != 0 {
		out[optionVXLAN] = strconv.FormatUint(uint64(vni), 10)
	}
	return out
}

// swarmNetwork returns a network as tasks show it.
func swarmNetwork(n *musterv1.Network) swarm.Network {
	s := n.GetSpec()
	out := swarm.Network{
		ID: n.GetId(), Meta: Meta(n.GetMeta()),
		Spec: swarm.NetworkSpec{
			Annotations:         annotations(s.GetName(), s.GetLabels()),
			DriverConfiguration: &swarm.Driver{Name: driverName(s), Options: s.GetDriver().GetOptions()},
			IPv6Enabled:         s.GetIpv6Enabled(), Internal: s.GetInternal(), Attachable: s.GetAttachable(), Ingress: s.GetIngress(),
			IPAMOptions: swarmIPAM(s.GetIpam()), Scope: ScopeSwarm,
		},
		DriverState: swarm.Driver{Name: driverName(s), Options: options(n)},
		IPAMOptions: swarmIPAM(ipamOf(n)),
	}
	return out
}

func swarmIPAM(i *musterv1.IPAMOptions) *swarm.IPAMOptions {
	if i == nil {
		return nil
	}
	out := &swarm.IPAMOptions{Driver: swarm.Driver{Name: defaultIPAM}}
	if d := i.Driver; d.GetName() != "" {
		out.Driver = swarm.Driver{Name: d.Name, Options: d.Options}
	}
	for _, c := range i.Configs {
		one := swarm.IPAMConfig{Subnet: prefix(c.Subnet), Range: prefix(c.Range)}
		one.Gateway, _ = netip.ParseAddr(c.Gateway)
		out.Configs = append(out.Configs, one)
	}
	return out
}
