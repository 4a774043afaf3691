package dns_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/dns"
)

// The tasks of these tests have loopback addresses, so that queries come from them.
const (
	local1 = "127.66.0.1"
	local2 = "127.66.0.2"
)

// listen serves a server on loopback, and returns its address.
func listen(t testing.TB, s *dns.Server) string {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: tcp.Addr().(*net.TCPAddr).Port})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, "n1", udp, tcp) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
		if _, err := udp.Write(nil); err == nil {
			t.Error("the socket is open after Serve")
		}
	})
	return tcp.Addr().String()
}

func newLocal(t testing.TB, cfg dns.Config) *dns.Server {
	t.Helper()
	cfg.ResolvConf = filepath.Join(t.TempDir(), "none")
	s := dns.New(cfg)
	s.Apply(world())
	for i, address := range []string{local1, local2} {
		s.Attach(attachment(fmt.Sprintf("l%d", i), "s9", &networkv1.Attachment{NetworkId: "n1", Addresses: []string{address}}))
	}
	return s
}

func dial(t testing.TB, network, from, to string) *mdns.Conn {
	t.Helper()
	dialer := net.Dialer{}
	if network == "udp" {
		dialer.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
	} else {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	conn, err := dialer.Dial(network, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &mdns.Conn{Conn: conn, UDPSize: 4096}
}

// exchange sends a query until it is answered: the kernel may lose datagrams.
func exchange(t testing.TB, conn *mdns.Conn, m *mdns.Msg) *mdns.Msg {
	t.Helper()
	var err error
	for range 60 {
		if err = conn.WriteMsg(m); err != nil {
			break
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		var got *mdns.Msg
		if got, err = conn.ReadMsg(); err == nil {
			return got
		}
	}
	t.Fatal(err)
	return nil
}

func TestServeAnswersOverBothProtocols(t *testing.T) {
	t.Parallel()
	s := newLocal(t, dns.Config{})
	big(s, 1000)
	address := listen(t, s)
	for _, test := range []struct {
		network, from string
		edns          uint16
		rcode         int
		truncated     bool
		least, most   int
	}{
		{"udp", local1, 0, ok, true, 20, 32},
		{"udp", local1, 4096, ok, true, 60, 80},
		{"udp", local1, 100, ok, true, 20, 32},
		{"tcp", local1, 0, ok, false, 1000, 1000},
		{"udp", "127.66.0.9", 0, mdns.RcodeRefused, false, 0, 0},
	} {
		m := query("db", mdns.TypeA)
		if test.edns > 0 {
			m.SetEdns0(test.edns, false)
		}
		got := exchange(t, dial(t, test.network, test.from, address), m)
		if got.Rcode != test.rcode || got.Truncated != test.truncated || len(got.Answer) < test.least || len(got.Answer) > test.most {
			t.Errorf("%+v: %s, %d records, truncated = %t", test, mdns.RcodeToString[got.Rcode], len(got.Answer), got.Truncated)
		}
	}
	// Responses are not answered, so that two servers do not talk forever.
	conn := dial(t, "udp", local1, address)
	if err := conn.WriteMsg(new(mdns.Msg).SetReply(query("web", mdns.TypeA))); err != nil {
		t.Fatal(err)
	}
	m := query("web", mdns.TypeA)
	if got := exchange(t, conn, m); got.Id != m.Id {
		t.Errorf("answer to a response: %s", got)
	}
}

// A task that floods the server loses its own queries alone.
func TestFloodIsContained(t *testing.T) {
	t.Parallel()
	s := newLocal(t, dns.Config{Rate: 10})
	address := listen(t, s)
	flood := dial(t, "udp", local1, address)
	// Refused, dropped or answered: no query may vanish uncounted.
	for s.Stats().Dropped < 100 {
		for range 50 {
			if err := flood.WriteMsg(query("web", mdns.TypeA)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := exchange(t, dial(t, "udp", local2, address), query("web", mdns.TypeA)); got.Rcode != ok {
		t.Errorf("another task gets %s", got)
	}
	conn := dial(t, "tcp", local2, address)
	for {
		// The rate counts for TCP too.
		if err := conn.WriteMsg(query("web", mdns.TypeA)); err != nil {
			break
		}
		if _, err := conn.ReadMsg(); err != nil {
			break
		}
	}
}

func TestConnectionsOfTaskAreLimited(t *testing.T) {
	t.Parallel()
	s := newLocal(t, dns.Config{})
	address := listen(t, s)
	var conns []*mdns.Conn
	for range 16 {
		conn := dial(t, "tcp", local1, address)
		if got := exchange(t, conn, query("web", mdns.TypeA)); got.Rcode != ok {
			t.Fatalf("%s", got)
		}
		conns = append(conns, conn)
	}
	closed := func(from string) bool {
		conn := dial(t, "tcp", from, address)
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		_ = conn.WriteMsg(query("web", mdns.TypeA))
		_, err := conn.ReadMsg()
		return err != nil
	}
	if !closed(local1) {
		t.Error("a task has 17 connections")
	}
	if !closed("127.66.0.9") {
		t.Error("a stranger has a connection")
	}
	if closed(local2) {
		t.Error("another task has no connection")
	}
	if err := conns[0].Close(); err != nil {
		t.Fatal(err)
	}
	// The server has to see it first.
	for closed(local1) {
	}
}

// Queries and changes at the same time: the race detector watches.
func TestQueriesDuringChanges(t *testing.T) {
	t.Parallel()
	s := newLocal(t, dns.Config{Rate: 1 << 20})
	address := listen(t, s)
	var wg sync.WaitGroup
	var stop atomic.Bool
	for _, from := range []string{local1, local2} {
		conn := dial(t, "udp", from, address)
		wg.Go(func() {
			for _, name := range []string{"web", "db", "_sql._tcp.db", "db.1", "primary", "1.16.64.10.in-addr.arpa"} {
				for range 50 {
					exchange(t, conn, query(name, mdns.TypeA))
				}
			}
			stop.Store(true)
		})
	}
	wg.Go(func() {
		for i := 0; !stop.Load(); i++ {
			s.Apply(world())
			big(s, i%50)
			s.Attach(attachment("t3", "s2", &networkv1.Attachment{NetworkId: "n1", Addresses: []string{"10.64.16.3"}, Aliases: []string{"primary"}}))
			s.Attach(attachment("l0", "s9", &networkv1.Attachment{NetworkId: "n1", Addresses: []string{local1}}))
			s.Detach("t3")
			_ = s.Stats()
		}
	})
	wg.Wait()
}

// processorTime is what the process has used of all cores.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkServe measures answers over real sockets on loopback. Clients and server share
// the cores: a second of a core holds the work of both.
func BenchmarkServe(b *testing.B) {
	s := newLocal(b, dns.Config{Rate: 1 << 30})
	address := listen(b, s)
	const clients, window = 4, 16
	var wg sync.WaitGroup
	var sent atomic.Int64
	began, before := time.Now(), processorTime(b)
	b.ResetTimer()
	for range clients {
		conn := dial(b, "udp", local1, address)
		raw, err := query("web", mdns.TypeA).Pack()
		if err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			buffer := make([]byte, 512)
			for range window {
				if _, err := conn.Conn.Write(raw); err != nil {
					b.Error(err)
				}
			}
			_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
			for sent.Add(1) <= int64(b.N) {
				if _, err := conn.Conn.Read(buffer); err != nil {
					b.Error(err)
					return
				}
				if _, err := conn.Conn.Write(raw); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "answers/s")
	b.ReportMetric(float64(b.N)/(processorTime(b)-before).Seconds(), "answers/cpu-s")
}
