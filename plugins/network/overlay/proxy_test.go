//go:build linux

package overlay_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pires/go-proxyproto"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/internal/durable"
)

// serveProxied answers HTTP with the task's name and the client that the PROXY protocol names.
// Connections without its header are closed.
func (e *endpoint) serveProxied(port int) {
	e.t.Helper()
	var listener net.Listener
	must(e.t, e.space.Do(func() (err error) {
		listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	}))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = fmt.Fprintf(w, "%s %s", e.id, client)
	})}
	go func() {
		_ = server.Serve(&proxyproto.Listener{Listener: listener, ConnPolicy: func(proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) { return proxyproto.REQUIRE, nil }})
	}()
	e.t.Cleanup(func() { _ = server.Close() })
}

// kept is a connection over which requests are sent again and again.
type kept struct {
	t      *testing.T
	conn   net.Conn
	reader *bufio.Reader
}

func keep(t *testing.T, connect func() (net.Conn, error)) *kept {
	t.Helper()
	conn, err := connect()
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return &kept{t, conn, bufio.NewReader(conn)}
}

// ask sends a request, and returns who answered.
func (k *kept) ask(when string) string {
	k.t.Helper()
	_, err := k.conn.Write([]byte("GET / HTTP/1.1\r\nHost: web\r\n\r\n"))
	must(k.t, err)
	response, err := http.ReadResponse(k.reader, nil)
	if err != nil {
		k.t.Fatalf("%s: %v", when, err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	must(k.t, err)
	server, _, _ := strings.Cut(string(text), " ")
	return server
}

func TestProxyProtocolTellsTheClientsAddress(t *testing.T) {
	outside, machines := newMachines(t, 3)
	all, local := port(8080, 80), port(8081, 80)
	all.ProxyProtocol, local.ProxyProtocol = true, true
	local.ExternalTraffic = musterv1.PortConfig_LOCAL
	ingress(machines, all, local, port(8082, 81))
	a, b := machines[0].attach("a", "ingress="+at(1, 2)), machines[1].attach("b", "ingress="+at(2, 2))
	for _, e := range []*endpoint{a, b} {
		e.serveProxied(80)
		e.serve(81)
	}
	tell := func(tasks ...*endpoint) {
		t.Helper()
		for _, m := range machines {
			m.apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{backends("ingress", "web", tasks...)}})
		}
	}
	refused := func(when, address string) {
		t.Helper()
		_, _, err := get(outside, address)
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, io.EOF) {
			t.Errorf("%s a request ended with %v", when, err)
		}
	}
	refused("without tasks", machines[0].address+":8080")
	tell(a, b)
	addresses := func(m *machine, port string) map[string]string {
		i := strings.TrimPrefix(m.address, "192.0.2.")
		return map[string]string{"192.0.2.254": m.address + ":" + port, "2001:db8::fe": "[2001:db8::" + i + "]:" + port}
	}
	for i, m := range machines {
		for client, address := range addresses(m, "8080") {
			seen := make(map[string]bool)
			for range 20 {
				server, saw := mustGet(t, outside, address)
				if seen[server] = true; saw != client {
					t.Errorf("at %s task %s saw %s, want %s", address, server, saw, client)
				}
			}
			if len(seen) != 2 {
				t.Errorf("%s is answered by %v", address, seen)
			}
		}
		for client, address := range addresses(m, "8081") {
			if i == 2 {
				if err := dial(outside, "tcp", address, patience); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("a connection to a node without a task ended with %v, not refused", err)
				}
				continue
			}
			if server, saw := mustGet(t, outside, address); saw != client || server != []string{"a", "b"}[i] {
				t.Errorf("at %s task %s saw %s", address, server, saw)
			}
		}
		if _, saw := mustGet(t, outside, m.address+":8082"); saw == "192.0.2.254" {
			t.Errorf("without the PROXY protocol a task of the mesh saw the client")
		}
		if server, _ := mustGet(t, m.space, "127.0.0.1:8080"); server == "" {
			t.Error("the node does not reach its own port")
		}
		// Tasks do not reach what takes the connections but through the published port.
		if err := dial(a.space, "tcp", "169.254.1.1:8080", packetPatience); err == nil {
			t.Error("a task reached the relay at the name server's address")
		}
	}
	m := machines[2]
	connect := func() (net.Conn, error) { return dialer(outside)(t.Context(), "tcp", m.address+":8080") }
	open := keep(t, connect)
	server := open.ask("at first")
	t.Run("connections outlive the plugin", func(t *testing.T) {
		must(t, m.plugin.Close())
		open.ask("without a plugin")
		mustGet(t, outside, m.address+":8080")
		m.start()
		r := joinRequest(machines, 2, "ingress", 4097, func(n *networkv1.Network) { n.Ingress = true }, func(r *networkv1.ApplyRequest) {
			r.Services = append(r.Services, &networkv1.Service{NetworkId: "ingress", Id: "web", Name: "web", VirtualIps: []string{"10.64.0.2"}, Ports: []*musterv1.PortConfig{all, local, port(8082, 81)}})
		})
		r.Complete, r.Backends = true, []*networkv1.Backends{backends("ingress", "web", a, b)}
		m.apply(r)
		open.ask("with another plugin")
	})
	t.Run("connections outlive the process that took them", func(t *testing.T) {
		// As a process of another program takes over: the old one gives its sockets away.
		conn, err := durable.Dial(t.Context(), filepath.Join(m.dir, "state", "names"), "handover", "unixpacket")
		must(t, err)
		defer func() { _ = conn.Close() }()
		for name := ""; name != "all"; {
			var files []*os.File
			var err error
			name, files, err = durable.Receive(conn)
			must(t, err)
			// They keep their ports while they are open.
			for _, f := range files {
				must(t, f.Close())
			}
		}
		must(t, durable.Send(conn, "taken"))
		if _, _, err := durable.Receive(conn); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		open.ask("after the process gave its ports away")
		repeat(t, func() error {
			_, _, err := get(outside, m.address+":8080")
			return err
		})
		open.ask("with another process")
	})
	t.Run("tasks that drain keep their connections", func(t *testing.T) {
		rest := a
		if server == "a" {
			rest = b
		}
		tell(rest)
		for range 10 {
			if got, _ := mustGet(t, outside, m.address+":8080"); got != rest.id {
				t.Errorf("a new connection went to %s", got)
			}
		}
		if got := open.ask("draining"); got != server {
			t.Errorf("the connection went to %s, want %s", got, server)
		}
	})
	t.Run("not published any longer", func(t *testing.T) {
		m.apply(&networkv1.ApplyRequest{RemovedServices: []*networkv1.ServiceRef{{NetworkId: "ingress", ServiceId: "web"}}})
		refused("not published any longer", m.address+":8080")
	})
}
