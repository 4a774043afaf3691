//go:build linux

package resident

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"go.uber.org/zap"
	"pgregory.net/rapid"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// echo accepts connections, and writes back what follows the header of the PROXY protocol.
func echo(t *testing.T) uint32 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				if _, err := io.CopyN(io.Discard, conn, headerSize); err == nil {
					_, _ = io.Copy(conn, conn)
				}
			}()
		}
	}()
	return uint32(l.Addr().(*net.TCPAddr).Port)
}

// headerSize is that of the header of version 2 for TCP over IPv4.
const headerSize = 28

// freePort returns a port that nothing listens at.
func freePort(t *testing.T) uint32 {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return uint32(l.Addr().(*net.TCPAddr).Port)
}

// connect connects to a port as a client, and returns an error unless a task answers. The
// connection stays open.
func connect(t *testing.T, client string, port uint32) error {
	t.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}
	conn, err := dialer.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}

// TestOneClientDoesNotTakeAllConnections has a client that opens connections to a published
// port, and does nothing with them.
func TestOneClientDoesNotTakeAllConnections(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root enters network namespaces")
	}
	const limit = 60
	task := echo(t)
	attacked, other := freePort(t), freePort(t)
	r := newRelays(zap.NewNop())
	r.shares.free = limit
	published := func(port uint32) *musterv1.PortConfig {
		return &musterv1.PortConfig{Protocol: musterv1.PortConfig_TCP, TargetPort: task, PublishedPort: port, ProxyProtocol: true}
	}
	r.apply(&networkv1.ApplyRequest{
		Complete: true, Node: &networkv1.Node{Id: "node"},
		Networks: []*networkv1.Network{{Id: "ingress", Ingress: true, NodeAddresses: []string{"127.0.0.1"}}},
		Services: []*networkv1.Service{{NetworkId: "ingress", Id: "web", Ports: []*musterv1.PortConfig{published(attacked), published(other)}}},
		Backends: []*networkv1.Backends{{NetworkId: "ingress", ServiceId: "web", Backends: []*networkv1.Backend{{TaskId: "a", NodeId: "node", Addresses: []string{"127.0.0.1"}}}}},
	})
	if err := r.listen("ingress", func() (*netns.Namespace, error) { return netns.Open(OwnSpace) }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.stop)
	held := 0
	for range 2 * limit {
		if err := connect(t, "127.0.0.2", attacked); err == nil {
			held++
		} else if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	if held == 0 || held > limit/3 {
		t.Errorf("one client holds %d of %d connections, want at most a third", held, limit)
	}
	for _, port := range []uint32{attacked, other} {
		if err := connect(t, "127.0.0.3", port); err != nil {
			t.Errorf("another client at port %d: %v", port, err)
		}
	}
}

func TestSharesLeaveSomeForOthers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit = 100
		s := &shares{free: limit}
		type held struct {
			port   *share
			client netip.Addr
		}
		ports := []*share{{}, {}, {}}
		var all []held
		for range rapid.IntRange(0, 400).Draw(t, "steps") {
			h := held{rapid.SampledFrom(ports).Draw(t, "port"), netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "client")})}
			switch {
			case len(all) > 0 && rapid.IntRange(0, 9).Draw(t, "release") == 0:
				i := rapid.IntRange(0, len(all)-1).Draw(t, "which")
				s.release(all[i].port, all[i].client)
				all = append(all[:i], all[i+1:]...)
			case s.take(h.port, h.client):
				all = append(all, h)
			}
			if s.free != limit-len(all) || s.free <= 0 {
				t.Fatalf("%d of %d are free with %d taken", s.free, limit, len(all))
			}
		}
		if fresh := (&share{}); !s.take(fresh, netip.AddrFrom4([4]byte{10, 0, 1, 0})) {
			t.Fatalf("another client at another port gets none of %d that are free", s.free)
		}
		for _, h := range all {
			s.release(h.port, h.client)
		}
		for _, p := range ports {
			if p.taken != 0 || len(p.clients) != 0 {
				t.Fatalf("a port still has %d connections of %d clients", p.taken, len(p.clients))
			}
		}
	})
}

func TestSharesNeedFiles(t *testing.T) {
	for files, want := range map[uint64]int{0: minRelayed, 1024: minRelayed, 4096: 1024, 20_000: 8976, 1 << 20: maxRelayed, 1 << 63: maxRelayed} {
		if got := newShares(files).free; got != want {
			t.Errorf("with %d files %d connections are relayed, want %d", files, got, want)
		}
	}
}

func TestClientsOfOneNetworkCountTogether(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8::1": "2001:db8::", "2001:db8::ffff:1": "2001:db8::", "2001:db8:0:1::1": "2001:db8:0:1::", "fe80::1%lo": "fe80::",
	} {
		if got := clientOf(net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), 1))); got != netip.MustParseAddr(want) {
			t.Errorf("%s counts as %s, want %s", address, got, want)
		}
	}
}
