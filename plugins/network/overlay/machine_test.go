//go:build linux

package overlay_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/overlay"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// patience is how long a test waits for what must come, and packetPatience how long for
// one packet. A packet may be lost on its way, as on any network.
const (
	patience       = 10 * time.Second
	packetPatience = 300 * time.Millisecond
)

// repeat makes a call until it succeeds.
func repeat(t testing.TB, call func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		err := call()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// machine is a network namespace that plays a node.
type machine struct {
	t       testing.TB
	space   *netns.Namespace
	dir     string
	node    *networkv1.Node
	address string
	plugin  *overlay.Plugin
	// log, machine and encryption are given to plugins that are started from now on.
	log        *zap.Logger
	machine    string
	encryption overlay.Encryption
}

// needRoot ends a test that cannot create namespaces. In CI that is a failure.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("this test needs root")
	}
	t.Skip("this test needs root")
}

func newSpace(t testing.TB, name string) *netns.Namespace {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	space, _, err := netns.Mounts{}.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(space.Close(), netns.Mounts{}.Remove(path)); err != nil {
			t.Error(err)
		}
	})
	h := handle(t, space)
	lo, err := h.LinkByName("lo")
	must(t, err)
	must(t, h.LinkSetUp(lo))
	return space
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func handle(t testing.TB, space *netns.Namespace) *netlink.Handle {
	t.Helper()
	h, err := space.Link()
	must(t, err)
	return h
}

func address(t testing.TB, h *netlink.Handle, name, cidr string) netlink.Link {
	t.Helper()
	l, err := h.LinkByName(name)
	must(t, err)
	a, err := netlink.ParseAddr(cidr)
	must(t, err)
	if a.IP.To4() == nil {
		a.Flags = 0x02 // IFA_F_NODAD
	}
	must(t, h.AddrAdd(l, a))
	must(t, h.LinkSetUp(l))
	return l
}

// newMachines returns machines on one network, and the namespace that plays everything
// outside, at 192.0.2.254.
func newMachines(t testing.TB, count int) (outside *netns.Namespace, machines []*machine) {
	t.Helper()
	// Nothing is shared with other tests.
	if test, ok := t.(*testing.T); ok {
		test.Parallel()
	}
	return makeMachines(t, count)
}

// makeMachines is newMachines for a test that decides itself what runs beside it.
func makeMachines(t testing.TB, count int) (outside *netns.Namespace, machines []*machine) {
	t.Helper()
	needRoot(t)
	outside = newSpace(t, "outside")
	h := handle(t, outside)
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "hub"
	bridge := &netlink.Bridge{LinkAttrs: attributes}
	must(t, h.LinkAdd(bridge))
	address(t, h, "hub", "192.0.2.254/24")
	address(t, h, "hub", "2001:db8::fe/64")
	for i := 1; i <= count; i++ {
		m := &machine{t: t, address: fmt.Sprintf("192.0.2.%d", i), dir: t.TempDir()}
		m.space = newSpace(t, "machine")
		// Devices of encrypted networks are known by their nodes on the whole machine.
		m.node = &networkv1.Node{Id: fmt.Sprintf("node-%d-%s", i, rand.Text()), DataPathAddress: m.address, DataPathPort: uint32(4788 + i)}
		attributes := netlink.NewLinkAttrs()
		attributes.Name = fmt.Sprintf("m%d", i)
		must(t, h.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: "eth0", PeerNamespace: netlink.NsFd(m.space.FD())}))
		port, err := h.LinkByName(attributes.Name)
		must(t, err)
		must(t, h.LinkSetMaster(port, bridge))
		must(t, h.LinkSetUp(port))
		own := handle(t, m.space)
		eth := address(t, own, "eth0", m.address+"/24")
		address(t, own, "eth0", fmt.Sprintf("2001:db8::%d/64", i))
		must(t, own.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP("192.0.2.254")}))
		must(t, m.space.Do(func() error {
			return errors.Join(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0), os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0))
		}))
		m.start()
		m.apply(&networkv1.ApplyRequest{Complete: true})
		t.Cleanup(m.clean)
		machines = append(machines, m)
	}
	return outside, machines
}

// beside returns another node on the same machine.
func (m *machine) beside(id string, port uint32) *machine {
	other := &machine{t: m.t, space: m.space, dir: m.t.TempDir(), address: m.address}
	other.node = &networkv1.Node{Id: id, DataPathAddress: m.address, DataPathPort: port}
	other.start()
	other.apply(&networkv1.ApplyRequest{Complete: true})
	m.t.Cleanup(other.clean)
	return other
}

// start starts a plugin that knows nothing but the machine's disk and kernel.
func (m *machine) start() {
	m.t.Helper()
	p, err := overlay.New(overlay.Config{
		Version: "test", StateDir: filepath.Join(m.dir, "state"), Host: m.space.Path, Namespaces: filepath.Join(m.dir, "spaces"), Machine: m.machine, Logger: m.log,
		Encryption: m.encryption,
	})
	must(m.t, err)
	m.plugin = p
}

// restart replaces the plugin's process.
func (m *machine) restart() {
	m.t.Helper()
	must(m.t, m.plugin.Close())
	m.start()
}

// clean removes everything, and checks that nothing is left.
func (m *machine) clean() {
	m.t.Helper()
	if log, err := os.ReadFile(filepath.Join(m.dir, "state", "names", "log")); m.t.Failed() && err == nil {
		m.t.Logf("log of the name server of %s:\n%s", m.node.GetId(), log)
	}
	ctx := context.Background()
	ids, err := m.plugin.List(ctx, m.node.GetId())
	if err != nil {
		m.t.Error(err)
	}
	for _, id := range ids {
		if err := m.plugin.Detach(ctx, id); err != nil {
			m.t.Error(err)
		}
	}
	if _, err := m.plugin.Apply(ctx, &networkv1.ApplyRequest{Complete: true, Node: m.node}); err != nil {
		m.t.Error(err)
	}
	if err := m.plugin.Close(); err != nil {
		m.t.Error(err)
	}
	if left := m.leftovers(); len(left) > 0 {
		m.t.Errorf("left behind after the last network: %v", left)
	}
}

// leftovers returns what a plugin made and did not remove.
func (m *machine) leftovers() []string {
	m.t.Helper()
	var left []string
	links, err := handle(m.t, m.space).LinkList()
	must(m.t, err)
	for _, l := range links {
		if name := l.Attrs().Name; strings.HasPrefix(name, overlay.HostPrefix(m.node.GetId())) || l.Type() == "vxlan" {
			left = append(left, "link "+name)
		}
	}
	if pid := m.process(); pid != 0 {
		left = append(left, fmt.Sprint("process ", pid))
	}
	for _, dir := range []string{"spaces", "state/tasks"} {
		entries, err := os.ReadDir(filepath.Join(m.dir, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			m.t.Error(err)
		}
		for _, e := range entries {
			left = append(left, dir+"/"+e.Name())
		}
	}
	for _, name := range tables(m.t, m.space) {
		if name == "muster-"+overlay.Short(m.node.GetId()) {
			left = append(left, "table "+name)
		}
	}
	return left
}

func (m *machine) apply(request *networkv1.ApplyRequest) {
	m.t.Helper()
	request.Node = m.node
	failed, err := m.plugin.Apply(context.Background(), request)
	for id, err := range failed {
		m.t.Errorf("network %s: %v", id, err)
	}
	must(m.t, err)
}

// endpoint is a task with a namespace.
type endpoint struct {
	t        testing.TB
	id       string
	space    *netns.Namespace
	machine  *machine
	request  *networkv1.AttachRequest
	response *networkv1.AttachResponse
}

// attach makes a task. Places are "network=address[,address]".
func (m *machine) attach(id string, places ...string) *endpoint {
	m.t.Helper()
	e := m.task(id, places...)
	e.attach()
	return e
}

func (m *machine) task(id string, places ...string) *endpoint {
	m.t.Helper()
	e := &endpoint{t: m.t, id: id, machine: m, space: newSpace(m.t, "task")}
	e.request = &networkv1.AttachRequest{TaskId: id, TaskName: id, ServiceId: "s", ServiceName: "s", Namespace: e.space.Path}
	for _, p := range places {
		network, addresses, _ := strings.Cut(p, "=")
		e.request.Attachments = append(e.request.Attachments, &networkv1.Attachment{NetworkId: network, Addresses: strings.Split(addresses, ",")})
	}
	return e
}

func (e *endpoint) attach() {
	e.t.Helper()
	response, err := e.machine.plugin.Attach(context.Background(), e.request)
	must(e.t, err)
	e.response = response
}

// serve answers HTTP with the task's name and the client's address.
func (e *endpoint) serve(port int) {
	e.t.Helper()
	serveIn(e.t, e.space, port, e.id)
}

// listenAt listens in a namespace. A test that waits for a connection that never comes ends
// after a while.
func listenAt(space *netns.Namespace, address string) (listener *net.TCPListener, err error) {
	err = space.Do(func() error {
		l, err := net.Listen("tcp", address)
		if err == nil {
			listener = l.(*net.TCPListener)
			err = listener.SetDeadline(time.Now().Add(patience))
		}
		return err
	})
	return listener, err
}

func serveIn(t testing.TB, space *netns.Namespace, port int, name string) {
	t.Helper()
	var listener net.Listener
	must(t, space.Do(func() (err error) {
		listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	}))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = fmt.Fprintf(w, "%s %s", name, client)
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
}

// get asks a server and returns who answered, and what client it saw.
func get(space *netns.Namespace, address string) (server, client string, err error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: dialer(space)}
	response, err := (&http.Client{Transport: transport, Timeout: patience}).Get("http://" + address + "/")
	if err != nil {
		return "", "", err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return "", "", err
	}
	server, client, _ = strings.Cut(string(text), " ")
	return server, client, nil
}

func dialer(space *netns.Namespace) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = space.Do(func() (err error) {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// mustGet asks a server that must answer.
func mustGet(t testing.TB, space *netns.Namespace, address string) (server, client string) {
	t.Helper()
	server, client, err := get(space, address)
	must(t, err)
	return server, client
}

// answers asks often enough to meet each of a few backends, and returns how often each
// answered.
func answers(t testing.TB, space *netns.Namespace, address string) map[string]int {
	t.Helper()
	seen := make(map[string]int)
	for range 40 {
		server, _ := mustGet(t, space, address)
		seen[server]++
	}
	return seen
}

// dial connects and closes the connection. The error tells a refusal from silence.
func dial(space *netns.Namespace, network, address string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := dialer(space)(ctx, network, address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// net10 describes a network on which each machine has one block: machine i has
// 10.64.16+i.0/26, and the node's own address is the first.
func net10(id string, vni uint32, i int, change func(*networkv1.Network)) *networkv1.Network {
	n := &networkv1.Network{
		Id: id, Name: id, Driver: overlay.DriverOverlay, Vni: vni,
		Subnets: []string{"10.64.0.0/16", "fd00:64::/64"}, Blocks: blocks(i),
		NodeAddresses: []string{fmt.Sprintf("10.64.%d.1", 16+i), fmt.Sprintf("fd00:64::%x:1", 16+i)},
	}
	if change != nil {
		change(n)
	}
	return n
}

func blocks(i int) []string {
	return []string{fmt.Sprintf("10.64.%d.0/26", 16+i), fmt.Sprintf("fd00:64::%x:0/112", 16+i)}
}

// at returns the addresses of task k on machine i.
func at(i, k int) string { return fmt.Sprintf("10.64.%d.%d,fd00:64::%x:%x", 16+i, k, 16+i, k) }

func first(addresses string) string {
	a, _, _ := strings.Cut(addresses, ",")
	return a
}

func second(addresses string) string {
	_, a, _ := strings.Cut(addresses, ",")
	return a
}

// join connects machines over a network: each gets it, and the others as peers.
func join(machines []*machine, id string, vni uint32, change func(*networkv1.Network), more func(*networkv1.ApplyRequest)) {
	for i, m := range machines {
		m.apply(joinRequest(machines, i, id, vni, change, more))
	}
}

func joinRequest(machines []*machine, i int, id string, vni uint32, change func(*networkv1.Network), more func(*networkv1.ApplyRequest)) *networkv1.ApplyRequest {
	r := &networkv1.ApplyRequest{Networks: []*networkv1.Network{net10(id, vni, i+1, change)}}
	for j, peer := range machines {
		if j != i {
			r.Peers = append(r.Peers, &networkv1.Peer{NetworkId: id, NodeId: peer.node.GetId(), DataPathAddress: peer.address, DataPathPort: peer.node.GetDataPathPort(), Blocks: blocks(j + 1)})
		}
	}
	if more != nil {
		more(r)
	}
	return r
}

// backend is a task as a service's backend.
func backend(e *endpoint, network string) *networkv1.Backend {
	for _, a := range e.request.GetAttachments() {
		if a.GetNetworkId() == network {
			return &networkv1.Backend{TaskId: e.id, Addresses: a.GetAddresses(), NodeId: e.machine.node.GetId()}
		}
	}
	return nil
}

func backends(network, service string, tasks ...*endpoint) *networkv1.Backends {
	b := &networkv1.Backends{NetworkId: network, ServiceId: service, Complete: true}
	for _, e := range tasks {
		b.Backends = append(b.Backends, backend(e, network))
	}
	return b
}

// listenUDP returns a socket of the task.
func (e *endpoint) listenUDP(port int) net.PacketConn {
	e.t.Helper()
	var conn net.PacketConn
	must(e.t, e.space.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		return err
	}))
	e.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// echoUDP answers each packet with its content and the task's name.
func (e *endpoint) echoUDP(port int) {
	e.t.Helper()
	conn := e.listenUDP(port)
	go func() {
		for buffer := make([]byte, 1500); ; {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(append(buffer[:n:n], e.id...), from)
		}
	}()
}

// ask sends a packet until it is answered, and returns who answered. A refusal is
// returned as it comes.
func ask(conn net.Conn) (string, error) {
	question := rand.Text()
	for deadline := time.Now().Add(patience); ; {
		if _, err := conn.Write([]byte(question)); err != nil {
			return "", err
		}
		if err := conn.SetReadDeadline(time.Now().Add(packetPatience)); err != nil {
			return "", err
		}
		buffer := make([]byte, 100)
		n, err := conn.Read(buffer)
		if name, ok := strings.CutPrefix(string(buffer[:n]), question); ok && err == nil {
			return name, nil
		}
		if err != nil && (!errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(deadline)) {
			return "", err
		}
	}
}
