//go:build linux

package overlay

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"strconv"
	"time"

	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
	"github.com/musterhq/muster/plugins/network/overlay/internal/tunnel"
)

// Encryption says how the traffic of encrypted networks is encrypted.
type Encryption struct {
	// Off keeps encrypted networks from the node.
	Off bool
	// Port is the first of two UDP ports for encrypted packets. 0: the first two free ones
	// from 4850.
	Port uint16
	// KeyInterval is how long the node uses a key. 0: without end.
	KeyInterval time.Duration
}

// Variables of the environment that say how networks are encrypted.
const (
	portKey     = "MUSTER_NETWORK_ENCRYPTED_PORT"
	intervalKey = "MUSTER_NETWORK_KEY_INTERVAL"
)

// defaultKeyInterval is how long a node uses a key.
const defaultKeyInterval = 30 * 24 * time.Hour

// ReadEncryption returns what the environment says.
func ReadEncryption(lookup func(string) (string, bool)) (Encryption, error) {
	e := Encryption{KeyInterval: defaultKeyInterval}
	if text, ok := lookup(portKey); ok && text != "" {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || port == math.MaxUint16 {
			return e, fmt.Errorf("invalid %s %q: want the first of two UDP ports, such as 4850, or 0 for a node without encrypted networks", portKey, text)
		}
		e.Port, e.Off = uint16(port), port == 0
	}
	if text, ok := lookup(intervalKey); ok && text != "" {
		interval, err := time.ParseDuration(text)
		if err != nil || interval < 0 || interval > 0 && interval < leastKeyInterval {
			return e, fmt.Errorf("invalid %s %q: want %s or more, such as 720h, or 0 to keep the key", intervalKey, text, leastKeyInterval)
		}
		e.KeyInterval = interval
	}
	return e, nil
}

// leastKeyInterval leaves time for all peers to learn of a key before the next one.
const leastKeyInterval = time.Minute

// ServeTunnel makes this process run a device of encrypted networks, if its arguments say
// so, and does not return then. A program that holds a Plugin calls it first in main,
// because the plugin starts the program again for this.
func ServeTunnel(args []string) {
	if len(args) < 2 || args[1] != tunnel.Argument {
		return
	}
	if err := tunnel.Run(args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "tunnel of encrypted networks: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (p *Plugin) newTunnel() (*tunnel.Tunnel, error) {
	e := p.config.Encryption
	// The tunnel works beside Apply, and has a handle of its own.
	host, err := netns.Open(fmt.Sprintf("/proc/self/fd/%d", p.host.FD()))
	if err != nil {
		return nil, fmt.Errorf("open network namespace of the host: %w", err)
	}
	return tunnel.New(tunnel.Config{
		Version: p.config.Version, StateDir: p.config.StateDir, Host: host, Mounts: p.mounts(), Kernel: p.kernel(), Logger: p.log,
		Path: p.pathOfTunnel, Moved: p.auditSoon, Port: e.Port, Interval: e.KeyInterval,
	})
}

// cannotEncrypt says why the node cannot have encrypted networks; nil if it can.
func (p *Plugin) cannotEncrypt() error {
	if p.config.Encryption.Off {
		return errors.New("it is turned off on the node (" + portKey + "=0)")
	}
	found, err := p.probe()
	if err != nil {
		return err
	}
	return found.encrypted
}

// describeEncryption adds what the node can encrypt, and its public key.
func (p *Plugin) describeEncryption(d *networkv1.DescribeResponse) {
	err := p.cannotEncrypt()
	var key wgtypes.Key
	var port uint16
	if err == nil {
		if key, port, err = p.tunnel.Identity(); err != nil {
			p.log.Error("failed to make a key for encrypted networks", zap.Error(err))
		}
	}
	if err != nil {
		d.Missing = append(d.Missing[:len(d.Missing):len(d.Missing)], "encrypted: "+err.Error())
		return
	}
	d.Capabilities = append(d.Capabilities, "encrypted")
	d.PublicKey, d.EncryptedPort = key[:], uint32(port)
}

// encrypt leads what an encrypted network sends to its peers through the tunnel. It says
// which peers cannot be reached.
func (n *network) encrypt(s *link.Network) (unreachable, err error) {
	if !n.spec.GetEncrypted() || s.VNI == 0 {
		return nil, nil
	}
	mtu, err := link.TunnelMTU(n.plugin.host, s)
	if err != nil {
		return nil, err
	}
	var peers []tunnel.Peer
	reachable := s.Peers[:0:0]
	for _, p := range s.Peers {
		with := n.peers[p.Node]
		if len(with.GetPublicKey()) != wgtypes.KeyLen || with.GetEncryptedPort() == 0 {
			unreachable = errors.Join(unreachable, fmt.Errorf("node %s cannot be reached: it has no key for encrypted networks", p.Node))
			continue
		}
		key := wgtypes.Key(with.GetPublicKey())
		p.Inner = tunnel.Address(key)
		reachable = append(reachable, p)
		peers = append(peers, tunnel.Peer{Node: p.Node, Key: key, Endpoint: netip.AddrPortFrom(p.Remote.Addr(), uint16(with.GetEncryptedPort()))})
	}
	s.Peers, s.TunnelPort = reachable, tunnel.VXLANPort
	s.Tunnel, err = n.plugin.tunnel.Use(n.node.GetId(), n.id, mtu, peers)
	return unreachable, err
}
