//go:build linux

package overlay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/overlay"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

func encrypted(n *networkv1.Network) { n.Encrypted = true }

// introduce adds the keys of machines to what is said of them as peers.
func introduce(t testing.TB, machines []*machine) func(*networkv1.ApplyRequest) {
	return func(r *networkv1.ApplyRequest) {
		for _, p := range r.GetPeers() {
			i := slices.IndexFunc(machines, func(m *machine) bool { return m.node.GetId() == p.GetNodeId() })
			d := machines[i].describe(t)
			if !slices.Contains(d.GetCapabilities(), "encrypted") {
				t.Fatalf("the machine cannot encrypt: %v", d.GetMissing())
			}
			p.PublicKey, p.EncryptedPort = d.GetPublicKey(), d.GetEncryptedPort()
		}
	}
}

func (m *machine) describe(t testing.TB) *networkv1.DescribeResponse {
	t.Helper()
	d, err := m.plugin.Describe(context.Background())
	must(t, err)
	return d
}

// sniffer keeps what passes a namespace's links.
type sniffer struct {
	t    testing.TB
	fd   int
	mu   sync.Mutex
	seen [][]byte
}

func sniff(t testing.TB, space *netns.Namespace) *sniffer {
	t.Helper()
	s := &sniffer{t: t}
	must(t, space.Do(func() (err error) {
		// In network byte order.
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
		s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
		return err
	}))
	must(t, unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
	must(t, unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20))
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		buffer := make([]byte, 1<<16)
		for ctx.Err() == nil {
			n, _, err := unix.Recvfrom(s.fd, buffer, 0)
			if err != nil {
				continue
			}
			s.mu.Lock()
			s.seen = append(s.seen, bytes.Clone(buffer[:n]))
			s.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		cancel()
		done.Wait()
		_ = unix.Close(s.fd)
	})
	return s
}

// saw reports whether a text passed.
func (s *sniffer) saw(text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.seen {
		if bytes.Contains(p, []byte(text)) {
			return nil
		}
	}
	return fmt.Errorf("%q is in none of %d packets", text, len(s.seen))
}

func TestEncryptedTrafficIsUnreadableOnTheWay(t *testing.T) {
	outside, machines := newMachines(t, 2)
	join(machines, "open", 4097, nil, nil)
	join(machines, "closed", 4098, encrypted, introduce(t, machines))
	s := sniff(t, outside)
	// Answers contain the names of their tasks. The open one comes last: what was sent
	// before has been seen by then.
	for _, network := range []string{"closed", "open"} {
		client := machines[0].attach(network+"-client", network+"="+at(1, 2))
		server := machines[1].attach(network+"-canary", network+"="+at(2, 2))
		server.serve(80)
		for _, to := range []string{first(at(2, 2)), "[" + second(at(2, 2)) + "]"} {
			if name, _ := mustGet(t, client.space, to+":80"); name != server.id {
				t.Errorf("%s answered", name)
			}
		}
	}
	repeat(t, func() error { return s.saw("open-canary") })
	if s.saw("closed-canary") == nil {
		t.Error("an answer on the encrypted network was seen on the way")
	}
}

// load asks a server again and again over one connection and over new ones, until it is told
// to stop. It returns how often, and what failed. Until then, answered says how often so far.
func load(t testing.TB, from *netns.Namespace, to string) (stop func() (requests int, failed []error), answered func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var requests int
	var failed []error
	var done sync.WaitGroup
	began := make(chan struct{}, 2)
	for _, keep := range []bool{true, false} {
		done.Go(func() {
			client := &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: dialer(from), DisableKeepAlives: !keep}}
			for n := 0; ctx.Err() == nil; n++ {
				response, err := client.Get("http://" + to + "/")
				if err == nil {
					_, err = io.Copy(io.Discard, response.Body)
					err = errors.Join(err, response.Body.Close())
				}
				mu.Lock()
				if requests++; err != nil {
					failed = append(failed, fmt.Errorf("keep-alive %t, request %d: %w", keep, n, err))
				}
				mu.Unlock()
				if n == 0 {
					began <- struct{}{}
				}
			}
		})
	}
	<-began
	<-began
	stop = func() (int, []error) {
		cancel()
		done.Wait()
		return requests, failed
	}
	return stop, func() int {
		mu.Lock()
		defer mu.Unlock()
		return requests - len(failed)
	}
}

func TestReplacingKeysLosesNoRequest(t *testing.T) {
	_, machines := newMachines(t, 3)
	meet := introduce(t, machines)
	join(machines, "net", 4098, encrypted, meet)
	server := machines[1].attach("server", "net="+at(2, 2))
	server.serve(80)
	var stops []func() (int, []error)
	var counts []func() int
	for _, i := range []int{0, 2} {
		client := machines[i].attach(fmt.Sprint("client-", i), "net="+at(i+1, 2))
		mustGet(t, client.space, first(at(2, 2))+":80")
		stop, answered := load(t, client.space, first(at(2, 2))+":80")
		stops, counts = append(stops, stop), append(counts, answered)
	}
	// The server's machine first, then one of the clients', then all at once. Peers learn
	// of a key one after the other.
	for _, changed := range [][]*machine{machines[1:2], machines[:1], machines} {
		var old [][]byte
		for _, m := range changed {
			old = append(old, m.describe(t).GetPublicKey())
			m.replaceKey()
		}
		for i, m := range changed {
			if bytes.Equal(old[i], m.describe(t).GetPublicKey()) {
				t.Error("the key is the one of before")
			}
		}
		// Peers do not know of the new key yet, and traffic flows.
		for _, answered := range counts {
			before := answered()
			repeat(t, func() error {
				if now := answered(); now < before+10 {
					return fmt.Errorf("%d requests were answered since a key was replaced, want 10", now-before)
				}
				return nil
			})
		}
		for i, m := range machines {
			m.apply(joinRequest(machines, i, "net", 4098, encrypted, meet))
		}
		for _, m := range machines {
			repeat(t, func() error {
				d, err := m.devices()
				if err == nil && len(d) != 1 {
					err = fmt.Errorf("devices %v, want one", d)
				}
				return err
			})
		}
	}
	for _, stop := range stops {
		requests, failed := stop()
		t.Logf("%d requests", requests)
		if err := errors.Join(failed...); err != nil || requests < 10 {
			t.Errorf("%d of %d requests failed: %v", len(failed), requests, err)
		}
	}
}

// replaceKey has the node replace its key, and returns when it accepts packets with the new
// one.
func (m *machine) replaceKey() {
	m.t.Helper()
	must(m.t, os.WriteFile(filepath.Join(m.dir, "state", "replace-key"), nil, 0o600))
	_, err := m.plugin.Audit(m.t.Context())
	must(m.t, err)
}

// devices returns the links in the namespace of a node's tunnel.
func (m *machine) devices() (names []string, err error) {
	m.t.Helper()
	space, err := netns.Open(m.plugin.PathOfTunnel(m.node.GetId()))
	if err != nil {
		return nil, err
	}
	defer func() { _ = space.Close() }()
	links, err := handle(m.t, space).LinkList()
	for _, l := range links {
		if name := l.Attrs().Name; name != "lo" {
			names = append(names, name)
		}
	}
	return names, err
}

func TestEncryptedConnectionsOutliveThePlugin(t *testing.T) {
	_, machines := newMachines(t, 2)
	meet := introduce(t, machines)
	join(machines, "net", 4098, encrypted, meet)
	server := machines[1].attach("server", "net="+at(2, 2))
	server.serve(80)
	client := machines[0].attach("client", "net="+at(1, 2))
	before := machines[0].process()
	stop, _ := load(t, client.space, first(at(2, 2))+":80")
	for i, m := range machines {
		key := m.describe(t).GetPublicKey()
		m.restart()
		if !bytes.Equal(m.describe(t).GetPublicKey(), key) {
			t.Error("the new process has another key")
		}
		r := joinRequest(machines, i, "net", 4098, encrypted, meet)
		r.Complete = true
		m.apply(r)
		if repairs, err := m.plugin.Audit(t.Context()); err != nil || repairs != 0 {
			t.Errorf("audit made %d repairs: %v", repairs, err)
		}
	}
	requests, failed := stop()
	if err := errors.Join(failed...); err != nil || requests < 2 {
		t.Errorf("%d of %d requests failed: %v", len(failed), requests, err)
	}
	if now := machines[0].process(); now != before {
		t.Errorf("process %d runs the device, want %d as before", now, before)
	}
}

// process returns the id of the process that runs the node's device, or 0.
func (m *machine) process() int {
	m.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(m.t, err)
	for _, path := range all {
		line, err := os.ReadFile(path)
		if err == nil && bytes.Contains(line, []byte("\x00tunnel\x00mu-"+overlay.Short(m.node.GetId()))) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			must(m.t, err)
			return pid
		}
	}
	return 0
}

func TestDeviceThatEndsIsMadeAgain(t *testing.T) {
	outside, machines := newMachines(t, 2)
	join(machines, "net", 4098, encrypted, introduce(t, machines))
	server := machines[1].attach("canary", "net="+at(2, 2))
	server.serve(80)
	client := machines[0].attach("client", "net="+at(1, 2))
	mustGet(t, client.space, first(at(2, 2))+":80")
	s := sniff(t, outside)
	stop, _ := load(t, client.space, first(at(2, 2))+":80")
	for _, m := range machines {
		before := m.process()
		if before == 0 {
			t.Skip("the kernel has WireGuard: no process can end")
		}
		must(t, syscall.Kill(before, syscall.SIGKILL))
		repeat(t, func() error {
			if now := m.process(); now == before || now == 0 {
				return errors.New("no other process has taken over")
			}
			return nil
		})
		repeat(t, func() error {
			_, _, err := get(client.space, first(at(2, 2))+":80")
			return err
		})
	}
	// The kernel sends again what was lost meanwhile.
	if requests, failed := stop(); len(failed) > 0 {
		t.Errorf("%d of %d requests failed: %v", len(failed), requests, errors.Join(failed...))
	}
	if s.saw("canary") == nil {
		t.Error("an answer was seen on the way")
	}
}

func TestPrivateKeyStaysWithItsNode(t *testing.T) {
	_, machines := newMachines(t, 1)
	m := machines[0]
	core, logged := observer.New(zap.DebugLevel)
	m.log = zap.New(core)
	m.restart()
	m.apply(&networkv1.ApplyRequest{Complete: true, Networks: []*networkv1.Network{net10("net", 4098, 1, encrypted)}})
	m.replaceKey()
	path := filepath.Join(m.dir, "state", "encryption.json")
	stat, err := os.Stat(path)
	must(t, err)
	if stat.Mode().Perm() != 0o600 {
		t.Errorf("the file with the keys has mode %v", stat.Mode())
	}
	text, err := os.ReadFile(path)
	must(t, err)
	var keys []string
	for _, part := range strings.Split(string(text), `"`) {
		if len(part) == 44 && strings.HasSuffix(part, "=") {
			keys = append(keys, part)
		}
	}
	if len(keys) != 2 {
		t.Fatalf("%d keys in the file, want two: the test has lost its object", len(keys))
	}
	places := []string{m.describe(t).String()}
	for _, e := range logged.All() {
		places = append(places, fmt.Sprint(e.Message, e.ContextMap()))
	}
	pid := m.process()
	for _, file := range []string{"cmdline", "environ"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
		if pid != 0 {
			must(t, err)
		}
		places = append(places, string(text))
	}
	for _, k := range keys {
		for _, place := range places {
			if strings.Contains(place, k) {
				t.Errorf("a private key is in %.60q", place)
			}
		}
	}
}

func TestKeyIsReplacedOnDemand(t *testing.T) {
	_, machines := newMachines(t, 1)
	m := machines[0]
	before := m.describe(t)
	audit := func() *networkv1.DescribeResponse {
		_, err := m.plugin.Audit(t.Context())
		must(t, err)
		return m.describe(t)
	}
	if now := audit(); !bytes.Equal(now.GetPublicKey(), before.GetPublicKey()) {
		t.Error("the key was replaced without a demand")
	}
	must(t, os.WriteFile(filepath.Join(m.dir, "state", "replace-key"), nil, 0o600))
	after := audit()
	if bytes.Equal(after.GetPublicKey(), before.GetPublicKey()) || after.GetEncryptedPort() == before.GetEncryptedPort() {
		t.Errorf("after a demand the key is %x at port %d, as before", after.GetPublicKey(), after.GetEncryptedPort())
	}
	if now := audit(); !bytes.Equal(now.GetPublicKey(), after.GetPublicKey()) {
		t.Error("one demand replaced two keys")
	}
}

func TestNodesWithoutKeyAreLeftOut(t *testing.T) {
	_, machines := newMachines(t, 3)
	core, logged := observer.New(zap.ErrorLevel)
	machines[0].log = zap.New(core)
	machines[0].restart()
	meet := introduce(t, machines)
	join(machines, "net", 4098, encrypted, func(r *networkv1.ApplyRequest) {
		meet(r)
		for _, p := range r.GetPeers() {
			if p.GetNodeId() == machines[2].node.GetId() {
				p.PublicKey = nil
			}
		}
	})
	if found := logged.FilterMessage("some nodes of a network cannot be reached").All(); len(found) != 1 || !strings.Contains(fmt.Sprint(found[0].ContextMap()), machines[2].node.GetId()) {
		t.Errorf("logged: %v", found)
	}
	client := machines[0].attach("client", "net="+at(1, 2))
	for i, name := range []string{"", "reached", "lost"} {
		if name != "" {
			machines[i].attach(name, "net="+at(i+1, 2)).serve(80)
		}
	}
	mustGet(t, client.space, first(at(2, 2))+":80")
	if err := dial(client.space, "tcp", first(at(3, 2))+":80", packetPatience); err == nil {
		t.Error("a node without a key was reached")
	}
}

func TestEncryptionCanBeTurnedOff(t *testing.T) {
	_, machines := newMachines(t, 1)
	m := machines[0]
	m.encryption.Off = true
	m.restart()
	d := m.describe(t)
	if slices.Contains(d.GetCapabilities(), "encrypted") || len(d.GetPublicKey()) > 0 {
		t.Errorf("described: %v", d)
	}
	if !slices.ContainsFunc(d.GetMissing(), func(s string) bool { return strings.HasPrefix(s, "encrypted: ") }) {
		t.Errorf("nothing says why: %q", d.GetMissing())
	}
}

func TestSettingsOfEncryptionAreChecked(t *testing.T) {
	for _, c := range []struct {
		port, interval string
		want           overlay.Encryption
		err            string
	}{
		{"", "", overlay.Encryption{KeyInterval: 30 * 24 * time.Hour}, ""},
		{"51820", "24h", overlay.Encryption{Port: 51820, KeyInterval: 24 * time.Hour}, ""},
		{"0", "0", overlay.Encryption{Off: true}, ""},
		{"65535", "", overlay.Encryption{}, "MUSTER_NETWORK_ENCRYPTED_PORT"},
		{"wg0", "", overlay.Encryption{}, "MUSTER_NETWORK_ENCRYPTED_PORT"},
		{"", "1s", overlay.Encryption{}, "MUSTER_NETWORK_KEY_INTERVAL"},
		{"", "-1h", overlay.Encryption{}, "MUSTER_NETWORK_KEY_INTERVAL"},
	} {
		got, err := overlay.ReadEncryption(func(name string) (string, bool) {
			value := map[string]string{"MUSTER_NETWORK_ENCRYPTED_PORT": c.port, "MUSTER_NETWORK_KEY_INTERVAL": c.interval}[name]
			return value, value != ""
		})
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("port %q, interval %q: %v, want an error about %s", c.port, c.interval, err, c.err)
			}
		case err != nil || !reflect.DeepEqual(got, c.want):
			t.Errorf("port %q, interval %q: %+v, %v, want %+v", c.port, c.interval, got, err, c.want)
		}
	}
}

// TestPacketsInTheClearReachNoEncryptedNetwork sends VXLAN packets with the number of an
// encrypted network to each port of a node, as if another node of the network had sent them.
func TestPacketsInTheClearReachNoEncryptedNetwork(t *testing.T) {
	_, machines := newMachines(t, 3)
	join(machines[:2], "open", 4097, nil, nil)
	join(machines[:2], "closed", 4098, encrypted, introduce(t, machines))
	receiver := machines[1]
	port := receiver.describe(t).GetEncryptedPort()
	attack := func(vni uint32) {
		packet := forgery(vni, receiver, first(at(1, 3)), first(at(2, 4)), 0)
		for _, to := range []uint32{receiver.node.GetDataPathPort(), 4789, port} {
			from, at := netip.AddrPortFrom(netip.MustParseAddr(machines[0].address), 50000), netip.AddrPortFrom(netip.MustParseAddr(receiver.address), uint16(to))
			sendRaw(t, machines[2].space, udpPacket(from, at, packet))
		}
	}
	receive := func(conn net.PacketConn) (string, error) {
		must(t, conn.SetReadDeadline(time.Now().Add(packetPatience)))
		buffer := make([]byte, 100)
		n, _, err := conn.ReadFrom(buffer)
		return string(buffer[:n]), err
	}
	open := receiver.attach("open-victim", "open="+at(2, 4)).listenUDP(9)
	// The attack works where packets are not encrypted.
	repeat(t, func() error {
		attack(4097)
		_, err := receive(open)
		return err
	})
	friend := machines[0].attach("closed-friend", "closed="+at(1, 3))
	closed := receiver.attach("closed-victim", "closed="+at(2, 4)).listenUDP(9)
	attack(4098)
	for range 3 {
		repeat(t, func() error {
			sendUDP(t, friend.space, first(at(2, 4))+":9", []byte("legitimate"))
			content, err := receive(closed)
			if err == nil && content != "legitimate" {
				t.Errorf("a packet in the clear was received: %q", content)
			}
			return err
		})
	}
}

// TestNodesThatLeaveAreNoLongerHeard removes a peer, and lets it send further packets.
func TestNodesThatLeaveAreNoLongerHeard(t *testing.T) {
	_, machines := newMachines(t, 2)
	join(machines, "net", 4098, encrypted, introduce(t, machines))
	server := machines[1].attach("server", "net="+at(2, 2))
	server.serve(80)
	client := machines[0].attach("client", "net="+at(1, 2))
	mustGet(t, client.space, first(at(2, 2))+":80")
	conn := server.listenUDP(9)
	machines[1].apply(&networkv1.ApplyRequest{RemovedPeers: []*networkv1.PeerRef{{NetworkId: "net", NodeId: machines[0].node.GetId()}}})
	sendUDP(t, client.space, first(at(2, 2))+":9", []byte("late"))
	must(t, conn.SetReadDeadline(time.Now().Add(packetPatience)))
	if n, _, err := conn.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("%d bytes of a node that has left were received", n)
	}
}

// TestNodeCannotTakeAnothersKey lets two nodes claim the same key.
func TestNodeCannotTakeAnothersKey(t *testing.T) {
	_, machines := newMachines(t, 2)
	meet := introduce(t, machines)
	join(machines, "net", 4098, encrypted, func(r *networkv1.ApplyRequest) {
		meet(r)
		thief := proto.CloneOf(r.GetPeers()[0])
		thief.NodeId, thief.DataPathAddress, thief.Blocks = "zzz", "192.0.2.77", blocks(7)
		r.Peers = append(r.Peers, thief)
	})
	server := machines[1].attach("server", "net="+at(2, 2))
	server.serve(80)
	client := machines[0].attach("client", "net="+at(1, 2))
	mustGet(t, client.space, first(at(2, 2))+":80")
}
