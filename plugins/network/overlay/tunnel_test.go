//go:build linux

package overlay_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/network/overlay"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// udpPacket returns an IPv4 packet.
func udpPacket(from, to netip.AddrPort, payload []byte) []byte {
	source, target := from.Addr().As4(), to.Addr().As4()
	p := []byte{0x45, 0}
	p = binary.BigEndian.AppendUint16(p, uint16(28+len(payload)))
	p = append(p, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0)
	p = slices.Concat(p, source[:], target[:])
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
	p = binary.BigEndian.AppendUint16(p, from.Port())
	p = binary.BigEndian.AppendUint16(p, to.Port())
	p = binary.BigEndian.AppendUint16(p, uint16(8+len(payload)))
	return slices.Concat(p, []byte{0, 0}, payload)
}

// sendRaw sends an IPv4 packet as it is.
func sendRaw(t *testing.T, space *netns.Namespace, packet []byte) {
	t.Helper()
	must(t, space.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: [4]byte(packet[16:20])})
	}))
}

// forgery is a VXLAN packet for a network that its sender is not on. The packet in it
// seems to come from a task on another node.
func forgery(vni uint32, receiver *machine, source, victim string, size int) []byte {
	p := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, vni<<8)
	p = slices.Concat(p, overlay.PeerMAC(receiver.node.GetId()), []byte{2, 0, 0, 0, 0, 1, 8, 0})
	content := append([]byte("forged"), make([]byte, size)...)
	return append(p, udpPacket(netip.AddrPortFrom(netip.MustParseAddr(source), 7), netip.AddrPortFrom(netip.MustParseAddr(victim), 9), content)...)
}

// sendUDP sends a packet, whatever becomes of it.
func sendUDP(t *testing.T, space *netns.Namespace, to string, payload []byte) {
	t.Helper()
	conn, err := dialer(space)(t.Context(), "udp", to)
	must(t, err)
	_, _ = conn.Write(payload)
	must(t, conn.Close())
}

// withoutNetworks returns a namespace that is connected to a machine as containers are that
// are on no network of ours: over a bridge, whose traffic leaves with the machine's
// addresses.
func (m *machine) withoutNetworks() *netns.Namespace {
	m.t.Helper()
	space := newSpace(m.t, "container")
	h := handle(m.t, m.space)
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "docker0"
	bridge := &netlink.Bridge{LinkAttrs: attributes}
	must(m.t, h.LinkAdd(bridge))
	address(m.t, h, "docker0", "172.17.0.1/16")
	address(m.t, h, "docker0", "fd17::1/64")
	attributes.Name = "container"
	must(m.t, h.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: "eth0", PeerNamespace: netlink.NsFd(space.FD())}))
	port, err := h.LinkByName("container")
	must(m.t, err)
	must(m.t, h.LinkSetMaster(port, bridge))
	must(m.t, h.LinkSetUp(port))
	own := handle(m.t, space)
	eth := address(m.t, own, "eth0", "172.17.0.2/16")
	address(m.t, own, "eth0", "fd17::2/64")
	for _, gateway := range []string{"172.17.0.1", "fd17::1"} {
		must(m.t, own.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP(gateway)}))
	}
	m.nft(`table inet docker {
	chain leave {
		type nat hook postrouting priority 100;
		ip saddr 172.17.0.0/16 oifname eth0 masquerade
		ip6 saddr fd17::/64 oifname eth0 masquerade
	}
}`)
	return space
}

// nft runs the program nft on a machine.
func (m *machine) nft(rules string) {
	m.t.Helper()
	must(m.t, m.space.Do(func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	}))
}

// TestOnlyPeersSendVXLAN sends packets of VXLAN into a network that the sender is not on,
// in all ways that are open to a task and to a host that is no node.
func TestOnlyPeersSendVXLAN(t *testing.T) {
	for name, underlay := range map[string]string{"IPv4": "192.0.2.%d", "IPv6": "2001:db8::%d"} {
		t.Run(name, func(t *testing.T) {
			outside, machines := newMachines(t, 2)
			for i, m := range machines {
				m.address = fmt.Sprintf(underlay, i+1)
				m.node.DataPathAddress = m.address
				m.apply(&networkv1.ApplyRequest{Complete: true})
			}
			join(machines, "secret", 4097, func(n *networkv1.Network) { n.Internal = true }, nil)
			join(machines, "open", 4098, nil, nil)
			near, far := machines[0], machines[1]
			bad := near.task("bad", "open="+at(1, 2))
			bad.request.Ports = []*musterv1.PortConfig{{Protocol: musterv1.PortConfig_UDP, PublishedPort: 7000, TargetPort: 7000, PublishMode: musterv1.PortConfig_HOST}}
			bad.attach()
			container := near.withoutNetworks()
			friends := []*endpoint{near.attach("near-friend", "secret="+at(1, 3)), far.attach("far-friend", "secret="+at(2, 3))}
			for i, receiver := range machines {
				victim := receiver.attach("victim-"+receiver.node.GetId(), "secret="+at(i+1, 4))
				address, friend := first(at(i+1, 4)), friends[1-i]
				conn := victim.listenUDP(9)
				small := forgery(4097, receiver, first(at(2-i, 3)), address, 0)
				large := forgery(4097, receiver, first(at(2-i, 3)), address, 3000)
				port := fmt.Sprint(receiver.node.GetDataPathPort())
				to := net.JoinHostPort(receiver.address, port)
				ways := map[string]func(){
					"a task":                         func() { sendUDP(t, bad.space, to, small) },
					"a task, in fragments":           func() { sendUDP(t, bad.space, to, large) },
					"a task without networks":        func() { sendUDP(t, container, to, small) },
					"a task without networks, large": func() { sendUDP(t, container, to, large) },
					"a host that is no node":         func() { sendUDP(t, outside, to, small) },
					"a host that is no node, large":  func() { sendUDP(t, outside, to, large) },
				}
				if receiver == far && name == "IPv4" {
					// The client that the task answers seems to be the other node.
					ways["a port that a task has published"] = func() {
						socket := bad.listenUDP(7000)
						repeat(t, func() error {
							sendRaw(t, outside, udpPacket(netip.MustParseAddrPort(to), netip.MustParseAddrPort(near.address+":7000"), []byte("ask")))
							must(t, socket.SetReadDeadline(time.Now().Add(packetPatience)))
							_, client, err := socket.ReadFrom(make([]byte, 100))
							if err == nil {
								_, err = socket.WriteTo(small, client)
							}
							return err
						})
					}
				}
				for way, attack := range ways {
					attack()
					for range 2 {
						repeat(t, func() error {
							sendUDP(t, friend.space, address+":9", []byte("legitimate"))
							must(t, conn.SetReadDeadline(time.Now().Add(packetPatience)))
							buffer := make([]byte, 4000)
							n, _, err := conn.ReadFrom(buffer)
							if content := string(buffer[:n]); err == nil && content != "legitimate" {
								t.Errorf("%s received a forged packet, the last attack is by %s", receiver.node.GetId(), way)
							}
							return err
						})
					}
				}
			}
			stats, err := near.plugin.Stats(t.Context())
			must(t, err)
			if stats.GetDroppedPackets() < 5 {
				t.Errorf("%d dropped packets are counted, want 5 at least", stats.GetDroppedPackets())
			}
		})
	}
}

// TestTasksReachDataPathPortsOfOtherHosts lets a task send to a host that is no node, at the
// ports at which nodes receive.
func TestTasksReachDataPathPortsOfOtherHosts(t *testing.T) {
	outside, machines := newMachines(t, 2)
	join(machines, "net", 4097, nil, nil)
	task := machines[0].attach("task", "net="+at(1, 2))
	for _, m := range machines {
		for _, host := range []string{"192.0.2.254", "[2001:db8::fe]"} {
			port := int(m.node.GetDataPathPort())
			var conn *net.UDPConn
			must(t, outside.Do(func() (err error) {
				conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: port})
				return err
			}))
			repeat(t, func() error {
				sendUDP(t, task.space, fmt.Sprintf("%s:%d", host, port), []byte("question"))
				must(t, conn.SetReadDeadline(time.Now().Add(packetPatience)))
				_, _, err := conn.ReadFromUDP(make([]byte, 100))
				return err
			})
			must(t, conn.Close())
		}
	}
}
