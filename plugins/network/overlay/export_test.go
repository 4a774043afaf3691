//go:build linux

package overlay

import (
	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
)

// Before sets what is called before each change of the kernel. An error ends the process
// at this point, as far as the kernel can tell.
func (p *Plugin) Before(call func(string) error) { p.before = call }

// SpaceOf returns the path of a network's namespace on a node.
func (p *Plugin) SpaceOf(node, network string) string { return p.pathOf(node, network) }

// PathOfTunnel returns the path of the namespace of a node's tunnel.
func (p *Plugin) PathOfTunnel(node string) string { return p.pathOfTunnel(node) }

var (
	HostLink   = link.HostLink
	HostPrefix = link.HostPrefix
	PeerMAC    = link.PeerMAC
	Short      = link.Short
)
