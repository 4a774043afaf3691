//go:build linux

package tunnel

import (
	"errors"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// nameOf returns the name of a key's device.
func (t *Tunnel) nameOf(k *key) string { return link.TunnelLink(t.node, k.Slot) }

// inUserSpace reports whether a key's device runs in a process.
func (t *Tunnel) inUserSpace(k *key) (bool, error) {
	if t.space == nil {
		return false, nil
	}
	kind, err := link.Kind(t.space, t.nameOf(k))
	return kind == "tuntap" || kind == "tun", err
}

// ensure makes the tunnel be as it must.
func (t *Tunnel) ensure() error {
	if len(t.networks) == 0 && !t.complete {
		return nil
	}
	if err := removeStaleSockets(); err != nil {
		t.log.Warn("failed to remove stale sockets of tunnels", zap.Error(err))
	}
	if len(t.networks) == 0 {
		return t.remove()
	}
	if err := t.ensureKey(); err != nil {
		return err
	}
	if err := t.open(); err != nil {
		return err
	}
	// wgctrl speaks with the kernel of the namespace that it was opened in.
	return t.space.Do(func() error {
		client, err := wgctrl.New()
		if err != nil {
			return err
		}
		return errors.Join(t.ensureDevices(bounded{client}), client.Close())
	})
}

// remove removes the tunnel: no network needs it.
func (t *Tunnel) remove() error {
	t.peers = make(map[wgtypes.Key]*peer)
	if err := t.closeSpace(); err != nil {
		return err
	}
	if len(t.record.Keys) > 1 {
		next := *t.record
		next.Keys = next.Keys[1:]
		if err := next.write(t.config.StateDir); err != nil {
			return err
		}
		t.record = &next
	}
	if t.node == "" {
		return nil
	}
	path := t.config.Path(t.node)
	space, err := t.config.Mounts.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = errors.Join(t.removeDevices(space, nil), space.Close())
	}
	if err != nil && !errors.Is(err, netns.ErrNone) {
		return err
	}
	return t.config.Kernel.RemovePath(path)
}

// removeDevices removes the devices that are not among the given ones.
func (t *Tunnel) removeDevices(space *netns.Namespace, needed map[string]netip.Addr) error {
	names, err := link.TunnelLinks(space)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, ok := needed[name]; ok {
			continue
		}
		if err := t.removeDevice(space, name); err != nil {
			return err
		}
	}
	return nil
}

// removeDevice removes a device. A process that ran it has ended when this returns: another
// one for the same device would get in its way.
func (t *Tunnel) removeDevice(space *netns.Namespace, name string) error {
	p, err := findProcess(name)
	if err != nil {
		return err
	}
	if err := t.config.Kernel.RemoveTunnelLink(space, name); err != nil {
		return errors.Join(err, p.close())
	}
	return errors.Join(p.end(), p.close())
}

// mtu returns how large packets within the tunnel may be.
func (t *Tunnel) mtu() int {
	least := 0
	for _, u := range t.networks {
		if least == 0 || u.mtu < least {
			least = u.mtu
		}
	}
	return least
}

// open opens the tunnel's namespace. If it is another one than before, the devices in it
// are made again.
func (t *Tunnel) open() error {
	space, err := t.config.Kernel.EnsureTunnelSpace(t.config.Path(t.node))
	if err != nil {
		return err
	}
	if space.Same(t.space) {
		return space.Close()
	}
	if err := t.closeSpace(); err != nil {
		return errors.Join(err, space.Close())
	}
	w, err := watchLinks(space, t.nudge)
	if err != nil {
		return errors.Join(err, space.Close())
	}
	t.space, t.watching = space, w
	if t.config.Moved != nil {
		t.config.Moved()
	}
	return nil
}

// ensureDevices makes the devices, their peers and the routes be as they must.
func (t *Tunnel) ensureDevices(control control) error {
	t.gatherPeers()
	devices := make(map[int]*wgtypes.Device)
	for _, k := range t.record.Keys {
		d, err := t.ensureDevice(control, k)
		if err != nil {
			return err
		}
		devices[k.Slot] = d
		t.ready[k.Slot] = true
	}
	t.choose(devices)
	if err := t.retire(); err != nil {
		return err
	}
	return t.ensureLinks()
}

// gatherPeers finds out which keys the devices accept. A key belongs to one node.
func (t *Tunnel) gatherPeers() {
	want := make(map[wgtypes.Key]*peer)
	current := make(map[string]bool)
	for _, id := range slices.Sorted(maps.Keys(t.networks)) {
		for _, p := range t.networks[id].peers {
			current[p.Node] = true
			if have := want[p.Key]; have == nil || have.node != p.Node && t.prefers(p.Key, p.Node, have.node) {
				want[p.Key] = &peer{node: p.Node, endpoint: p.Endpoint, slot: t.record.Keys[0].Slot}
			}
		}
	}
	for k, old := range t.peers {
		switch now := want[k]; {
		case now != nil && (now.node == old.node || !t.complete):
			now.slot = old.slot
		case !t.complete:
			want[k] = old
		case old.replaced.IsZero() && current[old.node]:
			old.replaced = time.Now()
			want[k] = old
		case !old.replaced.IsZero() && current[old.node] && time.Since(old.replaced) < overlap:
			want[k] = old
		}
	}
	t.peers = want
}

// prefers reports whether a node, and not another one, has a key that both claim. The node
// that had it before keeps it. Otherwise the first of them has it: neither can prove that it
// knows the private key.
func (t *Tunnel) prefers(key wgtypes.Key, node, other string) bool {
	if holder := t.peers[key]; t.complete && holder != nil && (holder.node == node || holder.node == other) {
		return holder.node == node
	}
	return node < other
}

// portTries is how often a device is made again because something else has its port.
const portTries = 3

// ensureDevice makes a key's device have its key, its port and all peers, and returns what
// it is. If something else has the port, the device is made again: create chooses another.
func (t *Tunnel) ensureDevice(control control, k *key) (*wgtypes.Device, error) {
	for left := portTries; ; left-- {
		d, taken, err := t.tryDevice(control, k)
		if !taken || left == 0 {
			return d, err
		}
		if err := t.removeDevice(t.space, t.nameOf(k)); err != nil {
			return nil, err
		}
	}
}

// tryDevice does what ensureDevice must, and reports whether it failed because something
// else has the port.
func (t *Tunnel) tryDevice(control control, k *key) (d *wgtypes.Device, taken bool, err error) {
	name := t.nameOf(k)
	kind, err := link.Kind(t.space, name)
	if err != nil {
		return nil, false, err
	}
	if kind != "" {
		if d, err = control.Device(name); err != nil {
			// Without its process's socket a device is of no use.
			if err := t.removeDevice(t.space, name); err != nil {
				return nil, false, err
			}
		}
	}
	if d == nil {
		if err := t.create(k); err != nil {
			return nil, false, err
		}
		if d, err = control.Device(name); err != nil {
			return nil, false, err
		}
	}
	config := t.missing(d, k)
	if config.PrivateKey != nil || config.ListenPort != nil || len(config.Peers) > 0 {
		err := t.config.Kernel.Do("configure WireGuard device "+name, func() error { return control.ConfigureDevice(name, config) })
		if err != nil {
			clear(t.told)
			// The error of a process has no number, and a device that failed to get its
			// port has closed its sockets.
			return nil, config.ListenPort != nil && !t.portIsFree(t.portOf(k)), err
		}
		if d, err = control.Device(name); err != nil {
			return nil, false, err
		}
	}
	return d, false, nil
}

// missing returns the settings that a device lacks. It notes which endpoints it is told.
func (t *Tunnel) missing(d *wgtypes.Device, k *key) wgtypes.Config {
	config := wgtypes.Config{}
	if d.PrivateKey != k.Private.Key {
		config.PrivateKey = &k.Private.Key
	}
	if port := int(t.portOf(k)); d.ListenPort != port {
		config.ListenPort = &port
	}
	have := make(map[wgtypes.Key]wgtypes.Peer)
	for _, p := range d.Peers {
		have[p.PublicKey] = p
		if t.complete && t.peers[p.PublicKey] == nil {
			config.Peers = append(config.Peers, wgtypes.PeerConfig{PublicKey: p.PublicKey, Remove: true})
			delete(t.told, toldKey{k.Slot, p.PublicKey})
		}
	}
	for public, p := range t.peers {
		present, ok := have[public]
		allowed := allowedIPs(public)
		told := toldKey{k.Slot, public}
		if _, known := t.told[told]; ok && !known && present.Endpoint != nil && unmapped(present.Endpoint.AddrPort()) == p.endpoint {
			t.told[told] = p.endpoint
		}
		if ok && len(present.AllowedIPs) == 1 && present.AllowedIPs[0].String() == allowed[0].String() && t.told[told] == p.endpoint {
			continue
		}
		every := keepalive
		config.Peers = append(config.Peers, wgtypes.PeerConfig{
			PublicKey: public, Endpoint: net.UDPAddrFromAddrPort(p.endpoint), ReplaceAllowedIPs: true, AllowedIPs: allowed, PersistentKeepaliveInterval: &every,
		})
		t.told[told] = p.endpoint
	}
	return config
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func allowedIPs(k wgtypes.Key) []net.IPNet {
	return []net.IPNet{{IP: Address(k).AsSlice(), Mask: net.CIDRMask(128, 128)}}
}

// create creates a key's device, in the kernel or else in a process.
func (t *Tunnel) create(k *key) error {
	name := t.nameOf(k)
	// The process of a device in another namespace, which was lost, ends by itself.
	before, err := findProcess(name)
	if err == nil {
		err = errors.Join(before.end(), before.close())
	}
	if err != nil {
		return err
	}
	if err := t.takePort(k); err != nil {
		return err
	}
	for told := range t.told {
		if told.slot == k.Slot {
			delete(t.told, told)
		}
	}
	made, err := t.config.Kernel.CreateWireGuard(t.config.Host, t.space, name)
	if err != nil || made {
		return err
	}
	k.Version = t.config.Version
	return t.config.Kernel.Do("start WireGuard device "+name, func() error { return t.startProcess(name) })
}

// choose decides through which device each peer is sent to.
func (t *Tunnel) choose(devices map[int]*wgtypes.Device) {
	newest := t.newest()
	if len(t.record.Keys) == 1 {
		for _, p := range t.peers {
			p.slot = newest.Slot
		}
		return
	}
	all := true
	for _, d := range devices[newest.Slot].Peers {
		p := t.peers[d.PublicKey]
		if p == nil {
			continue
		}
		if !d.LastHandshakeTime.IsZero() {
			p.slot = newest.Slot
		}
		if p.replaced.IsZero() && p.slot != newest.Slot {
			all = false
		}
	}
	if !all {
		t.answered = time.Time{}
	} else if t.answered.IsZero() {
		t.answered = time.Now()
	}
}

// retire removes the old device once no peer needs it.
func (t *Tunnel) retire() error {
	if len(t.record.Keys) == 1 {
		return nil
	}
	late := time.Since(t.newest().Made) > overlapMost
	if !late && (t.answered.IsZero() || time.Since(t.answered) < settle) {
		return nil
	}
	if late && t.answered.IsZero() {
		t.log.Warn("some nodes have not answered at the new key for encrypted networks, and the old one is removed", zap.Duration("after", overlapMost))
	}
	next := *t.record
	old := next.Keys[0]
	next.Keys = next.Keys[1:]
	if err := next.write(t.config.StateDir); err != nil {
		return err
	}
	t.record = &next
	t.ready[old.Slot] = false
	for _, p := range t.peers {
		p.slot = t.newest().Slot
	}
	t.log.Info("key for encrypted networks was replaced")
	return nil
}

// ensureLinks sets addresses and routes, and removes devices without a key.
func (t *Tunnel) ensureLinks() error {
	devices := make(map[string]netip.Addr)
	names := make(map[int]string)
	for _, k := range t.record.Keys {
		names[k.Slot] = t.nameOf(k)
		devices[names[k.Slot]] = Address(k.Private.PublicKey())
	}
	routes := make(map[netip.Addr]string)
	for k, p := range t.peers {
		routes[Address(k)] = names[p.slot]
	}
	if err := t.removeDevices(t.space, devices); err != nil {
		return err
	}
	return t.config.Kernel.EnsureTunnel(t.space, t.mtu(), devices, routes)
}
