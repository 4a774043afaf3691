//go:build linux

// Package tunnel carries the traffic of encrypted networks between nodes through WireGuard.
//
// A node has one tunnel for all encrypted networks, in a network namespace of its own: the
// ends of the tunnel see nothing but each other. The UDP sockets of WireGuard are in the
// host's namespace, and those of the networks' VXLAN devices in the tunnel's. So a VXLAN
// packet that comes from elsewhere reaches no encrypted network, and one of an encrypted
// network can leave through the tunnel only.
//
// The address of an end follows from its public key. While a node replaces its key it has
// two devices, each with a key, an address and a port of its own. Both receive; each peer
// is sent to through the new one as soon as it has answered there.
package tunnel

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// VXLANPort is the UDP port of VXLAN within the tunnel.
const VXLANPort = 4789

// prefix is what the addresses within the tunnel begin with. Nothing outside of the
// tunnel's namespace sees them.
var prefix = [6]byte{0xfd, 'm', 'u', 's', 't', 'g'}

const (
	// overlap is how long a replaced key of a peer is accepted, and overlapMost how long a
	// key of this node remains if some peers do not answer at the new one.
	overlap     = 3 * time.Minute
	overlapMost = time.Hour
	// settle is how long the old device receives after all peers have answered at the new
	// one: what is under way arrives.
	settle = 2 * time.Second
	// look is how often a device is asked which peers have answered, while a key is being
	// replaced.
	look = 250 * time.Millisecond
	// retry is how long follow waits after a failure.
	retry = 5 * time.Second
	// keepalive makes a new device greet its peers at once, and keeps the way open through
	// firewalls that forget.
	keepalive = 25 * time.Second
)

// Config is what a tunnel is given.
type Config struct {
	// Version is that of the program. A device in user space is replaced if another
	// version runs it.
	Version string
	// StateDir keeps the keys.
	StateDir string
	// Host is closed with the tunnel.
	Host   *netns.Namespace
	Mounts netns.Mounts
	// Path returns where the tunnel's namespace of a node is.
	Path func(node string) string
	// Kernel makes changes.
	Kernel *link.Kernel
	// Port is the first of two UDP ports of the node. 0: the first two free ones from
	// DefaultPort.
	Port uint16
	// Interval is how long a key is used. 0: without end.
	Interval time.Duration
	// Moved is called when the tunnel has another namespace than before: networks must be
	// compared with it. It must not wait for the tunnel.
	Moved  func()
	Logger *zap.Logger
}

// DefaultPort is the first UDP port of a node. It is none of those from 4789 on that several
// workers of one machine have for VXLAN.
const DefaultPort = 4850

// Peer is another node.
type Peer struct {
	Node string
	Key  [wgtypes.KeyLen]byte
	// Endpoint is where the peer gets encrypted packets.
	Endpoint netip.AddrPort
}

// Address returns the address within the tunnel that belongs to a public key.
func Address(key [wgtypes.KeyLen]byte) netip.Addr {
	sum := sha256.Sum256(key[:])
	var a [16]byte
	copy(a[copy(a[:], prefix[:]):], sum[:])
	return netip.AddrFrom16(a)
}

// Tunnel is a node's tunnel.
type Tunnel struct {
	config Config
	log    *zap.Logger

	// mu guards what follows, and is held during calls to the kernel.
	mu     sync.Mutex
	record *record
	node   string
	space  *netns.Namespace
	// networks are the peers of each encrypted network.
	networks map[string]use
	// complete is set once all networks are known: nothing is removed before.
	complete bool
	// peers are those that the devices must have, by key.
	peers map[wgtypes.Key]*peer
	// ready says which devices receive.
	ready [2]bool
	// told is what was configured: a peer that moves is followed by the device itself.
	told map[toldKey]netip.AddrPort
	// reserved are the ports that other workers of the machine do not choose.
	reserved reservation
	// answered is when all peers had answered at the newest device.
	answered time.Time

	watching *watch
	wake     chan struct{}
	stop     context.CancelFunc
	stopped  sync.WaitGroup
}

// use is what an encrypted network needs of the tunnel.
type use struct {
	mtu   int
	peers []Peer
}

type toldKey struct {
	slot int
	peer wgtypes.Key
}

// peer is a key of another node.
type peer struct {
	node     string
	endpoint netip.AddrPort
	// replaced is when the node had another key. Zero: this is its key.
	replaced time.Time
	// slot is the device that the peer is sent to through.
	slot int
}

// New returns a node's tunnel. It reads the keys that an earlier process made.
func New(config Config) (*Tunnel, error) {
	r, err := read(config.StateDir)
	if err != nil {
		return nil, errors.Join(err, config.Host.Close())
	}
	if config.Logger == nil {
		config.Logger = zap.NewNop()
	}
	ctx, cancel := context.WithCancel(context.Background())
	t := &Tunnel{
		config: config, log: config.Logger, record: r, networks: make(map[string]use),
		peers: make(map[wgtypes.Key]*peer), told: make(map[toldKey]netip.AddrPort),
		wake: make(chan struct{}, 1), stop: cancel,
	}
	t.stopped.Go(func() { t.follow(ctx) })
	return t, nil
}

// Close releases what the process holds. The tunnel stays.
func (t *Tunnel) Close() error {
	t.stop()
	t.stopped.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	return errors.Join(t.closeSpace(), t.reserved.close(), t.config.Host.Close())
}

func (t *Tunnel) closeSpace() error {
	if t.space == nil {
		return nil
	}
	t.watching.close()
	err := t.space.Close()
	t.space, t.watching, t.ready = nil, nil, [2]bool{}
	t.told = make(map[toldKey]netip.AddrPort)
	return err
}

// Identity returns the public key of the node and the UDP port at which it gets encrypted
// packets.
func (t *Tunnel) Identity() (public [wgtypes.KeyLen]byte, port uint16, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ensureKey(); err != nil {
		return public, 0, err
	}
	k := t.newest()
	if len(t.record.Keys) > 1 && !t.ready[k.Slot] {
		k = t.record.Keys[0]
	}
	return k.Private.PublicKey(), t.portOf(k), nil
}

func (t *Tunnel) newest() *key { return t.record.Keys[len(t.record.Keys)-1] }

func (t *Tunnel) portOf(k *key) uint16 { return t.record.Port + uint16(k.Slot) }

// Use says that an encrypted network needs the tunnel, how large packets within may be, and
// which peers the network has. It returns the tunnel's namespace.
func (t *Tunnel) Use(node, network string, mtu int, peers []Peer) (*netns.Namespace, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.node, t.networks[network] = node, use{mtu, peers}
	if err := t.ensure(); err != nil {
		return nil, fmt.Errorf("encrypt traffic between nodes: %w", err)
	}
	return t.space, nil
}

// Drop says that a network no longer needs the tunnel.
func (t *Tunnel) Drop(network string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.networks[network]; !ok {
		return nil
	}
	delete(t.networks, network)
	if !t.complete {
		return nil
	}
	return t.ensure()
}

// Verify makes the tunnel be as it must. All networks that need it are known by now.
func (t *Tunnel) Verify(node string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.node, t.complete = node, true
	if due := t.due(); due != "" {
		if err := t.rotate(due); err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(t.config.StateDir, demandName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if len(t.record.Keys) > 1 {
		defer t.nudge()
	}
	return t.ensure()
}

// due says why the key must be replaced now, or "".
func (t *Tunnel) due() string {
	if len(t.record.Keys) != 1 {
		return ""
	}
	k := t.newest()
	_, err := os.Lstat(filepath.Join(t.config.StateDir, demandName))
	switch {
	case err == nil:
		return "demand"
	case t.config.Interval > 0 && time.Since(k.Made) > t.config.Interval-jitter(k, t.config.Interval):
		return "age"
	case k.Version != t.config.Version && len(t.networks) > 0:
		// A device in the kernel is not of this version or another.
		if user, err := t.inUserSpace(k); user && err == nil {
			return "upgrade"
		}
	}
	return ""
}

// demandName is the file by which people ask for another key.
const demandName = "replace-key"

// jitter returns up to a tenth of an interval, so that nodes that were set up together do
// not all replace their keys together.
func jitter(k *key, interval time.Duration) time.Duration {
	return interval / 10 * time.Duration(k.Private.PublicKey()[0]) / 256
}

// rotate adds a key. Peers learn of it once its device receives.
func (t *Tunnel) rotate(why string) error {
	if err := t.ensureKey(); err != nil {
		return err
	}
	if len(t.record.Keys) > 1 {
		return errors.New("the key of the node is being replaced already")
	}
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return err
	}
	old := t.newest()
	next := *t.record
	next.Keys = append(next.Keys[:1:1], &key{Slot: 1 - old.Slot, Private: privateKey{private}, Made: time.Now(), Version: t.config.Version})
	if len(t.networks) == 0 && t.complete {
		next.Keys = next.Keys[1:]
	}
	if err := next.write(t.config.StateDir); err != nil {
		return err
	}
	t.record, t.answered = &next, time.Time{}
	t.log.Info("key for encrypted networks is being replaced", zap.String("reason", why), zap.Stringer("public_key", private.PublicKey()))
	return nil
}

// ensureKey makes a key if the node has none.
func (t *Tunnel) ensureKey() error {
	if len(t.record.Keys) > 0 {
		return nil
	}
	port, err := t.choosePort()
	if err != nil {
		return err
	}
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return err
	}
	r := &record{Port: port, Keys: []*key{{Private: privateKey{private}, Made: time.Now(), Version: t.config.Version}}}
	if err := r.write(t.config.StateDir); err != nil {
		return err
	}
	t.record = r
	return nil
}

// follow puts right what ends by itself, and continues the replacement of keys.
func (t *Tunnel) follow(ctx context.Context) {
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		case <-again:
		}
		again = nil
		t.mu.Lock()
		var err error
		if t.space != nil && len(t.networks) > 0 {
			if err = t.ensure(); err != nil {
				again = time.After(retry)
			} else if len(t.record.Keys) > 1 {
				again = time.After(look)
			}
		}
		t.mu.Unlock()
		if err != nil {
			t.log.Error("failed to keep up the tunnel of encrypted networks", zap.Error(err))
		}
	}
}

// nudge has follow look.
func (t *Tunnel) nudge() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Supported says why a node cannot encrypt, or nil if it can.
func Supported(space *netns.Namespace) error {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return errors.New("the kernel has no IPv6, which the inside of the tunnel uses")
	}
	if link.TryWireGuard(space) == nil {
		return nil
	}
	if err := link.TryTUN(space); err != nil {
		return fmt.Errorf("the kernel module wireguard is missing, and /dev/net/tun cannot be used instead: %w", err)
	}
	return nil
}
