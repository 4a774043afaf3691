package placement

import (
	"fmt"
	"net/netip"
	"slices"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// DefaultNetworkDriver serves a network whose spec names no driver.
const DefaultNetworkDriver = "overlay"

// Capabilities of network plugins that a network may need.
const (
	networkIPv6      = "ipv6"
	networkEncrypted = "encrypted"
	networkIngress   = "ingress"
)

// networkDriver returns the driver of a network.
func networkDriver(spec *musterv1.NetworkSpec) string {
	if name := spec.GetDriver().GetName(); name != "" {
		return name
	}
	return DefaultNetworkDriver
}

// networkCapabilities returns what a plugin must be capable of to serve a network.
func networkCapabilities(spec *musterv1.NetworkSpec) []string {
	var needs []string
	if spec.GetIpv6Enabled() || slices.ContainsFunc(spec.GetIpam().GetConfigs(), func(c *musterv1.IPAMConfig) bool {
		p, err := netip.ParsePrefix(c.GetSubnet())
		return err == nil && p.Addr().Is6()
	}) {
		needs = append(needs, networkIPv6)
	}
	if spec.GetEncrypted() {
		needs = append(needs, networkEncrypted)
	}
	if spec.GetIngress() {
		needs = append(needs, networkIngress)
	}
	return needs
}

// LacksForNetwork returns what the node lacks to serve a network: text for people, ""
// if a healthy plugin of the node serves it.
func (n *Node) LacksForNetwork(spec *musterv1.NetworkSpec) string {
	driver, needs := networkDriver(spec), networkCapabilities(spec)
	lacks := fmt.Sprintf("no network plugin for driver %q", driver)
	for _, d := range n.Description.GetNetworkDrivers() {
		if !slices.Contains(d.Drivers, driver) {
			continue
		}
		if d.Health != musterv1.ExecutorDescription_HEALTHY {
			lacks = fmt.Sprintf("network plugin for driver %q is not healthy", driver)
			continue
		}
		missing := slices.IndexFunc(needs, func(need string) bool { return !slices.Contains(d.Capabilities, need) })
		if missing < 0 {
			return ""
		}
		lacks = fmt.Sprintf("network plugin for driver %q lacks the capability %q", driver, needs[missing])
	}
	return lacks
}
