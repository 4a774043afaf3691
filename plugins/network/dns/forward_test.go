package dns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/dns"
)

// resolvers are the host's resolvers, behind pipes. The time of a test does not pass
// while they answer.
type resolvers struct {
	mu sync.Mutex
	// answer answers a query that came to a resolver; nil is no answer.
	answer func(network, resolver string, q *mdns.Msg) *mdns.Msg
	// asked are the queries so far: "udp 192.0.2.1:53 example.com. A".
	asked []string
}

func (r *resolvers) dial(_ context.Context, network, address string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go func() {
		defer func() { _ = ours.Close() }()
		conn := &mdns.Conn{Conn: ours}
		m, err := conn.ReadMsg()
		if err != nil {
			return
		}
		r.mu.Lock()
		r.asked = append(r.asked, fmt.Sprintf("%s %s %s %s", network, address, m.Question[0].Name, mdns.TypeToString[m.Question[0].Qtype]))
		answer := r.answer(network, address, m)
		r.mu.Unlock()
		if answer != nil {
			_ = conn.WriteMsg(answer)
			return
		}
		// Until the other side gives up.
		_, _ = conn.Read(make([]byte, 1))
	}()
	return theirs, nil
}

// since returns what was asked since the last call.
func (r *resolvers) since() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	asked := r.asked
	r.asked = nil
	return asked
}

// reply answers with an address.
func reply(q *mdns.Msg, ttl uint32, address string) *mdns.Msg {
	m := new(mdns.Msg).SetReply(q)
	m.Answer = []mdns.RR{&mdns.A{
		Hdr: mdns.RR_Header{Name: q.Question[0].Name, Rrtype: mdns.TypeA, Class: mdns.ClassINET, Ttl: ttl}, A: net.ParseIP(address),
	}}
	return m
}

// write writes a file with resolvers that differs from the one before by its size.
func write(t *testing.T, file string, servers ...string) {
	t.Helper()
	text := "# the host's\n"
	for _, s := range servers {
		text += "nameserver " + s + "\n"
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// newForwarding returns a server of the world that forwards to resolvers.
func newForwarding(t *testing.T, r *resolvers, cfg dns.Config) (s *dns.Server, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "resolv.conf")
	write(t, file, "192.0.2.1", "192.0.2.2")
	cfg.ResolvConf, cfg.Dial = file, r.dial
	s = dns.New(cfg)
	s.Apply(world())
	s.Attach(attachment("t9", "s9", &networkv1.Attachment{NetworkId: "n1", Addresses: []string{asker.String()}}))
	return s, file
}

func TestOtherNamesAreForwarded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &resolvers{answer: func(_, _ string, q *mdns.Msg) *mdns.Msg {
			opt := q.IsEdns0()
			if len(q.Extra) != 1 || opt == nil || len(opt.Option) > 0 || !opt.Do() || opt.UDPSize() != 1232 || len(q.Question) != 1 {
				t.Errorf("query that went out:\n%s", q)
			}
			m := reply(q, 60, "198.51.100.1")
			m.AuthenticatedData = true
			return m.SetEdns0(4096, true)
		}}
		s, _ := newForwarding(t, r, dns.Config{})
		m := query("Example.COM", mdns.TypeA).SetEdns0(4096, true)
		m.IsEdns0().Option = []mdns.EDNS0{&mdns.EDNS0_COOKIE{Code: mdns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
		got := s.Respond("n1", asker, m, 1232)
		if diff := cmp.Diff([]string{"198.51.100.1"}, data(got.Answer)); diff != "" || got.Rcode != ok || got.Authoritative || !got.AuthenticatedData {
			t.Errorf("%s (-want +got):\n%s", got, diff)
		}
		if got.Id != m.Id || got.Question[0].Name != "Example.COM." || len(got.Extra) != 1 || got.IsEdns0().UDPSize() != 1232 {
			t.Errorf("response does not fit the query:\n%s", got)
		}
		if diff := cmp.Diff([]string{"udp 192.0.2.1:53 example.com. A"}, r.since()); diff != "" {
			t.Errorf("asked (-want +got):\n%s", diff)
		}
	})
}

func TestAnswersAreKeptUntilTheyExpire(t *testing.T) {
	t.Parallel()
	soa := &mdns.SOA{Hdr: mdns.RR_Header{Name: "com.", Rrtype: mdns.TypeSOA, Class: mdns.ClassINET, Ttl: 100}, Ns: "a.", Mbox: "b.", Minttl: 10}
	synctest.Test(t, func(t *testing.T) {
		r := &resolvers{answer: func(_, _ string, q *mdns.Msg) *mdns.Msg {
			m := new(mdns.Msg).SetReply(q)
			switch q.Question[0].Name {
			case "short.com.":
				return reply(q, 5, "198.51.100.1")
			case "long.com.":
				return reply(q, 1<<20, "198.51.100.1")
			case "missing.com.":
				m.Rcode, m.Ns = absent, []mdns.RR{soa}
			case "empty.com.":
				m.Ns = []mdns.RR{soa}
			case "broken.com.":
				m.Rcode = failed
			case "large.com.":
				m = reply(q, 60, "198.51.100.1")
				for range 300 {
					m.Answer = append(m.Answer, m.Answer[0])
				}
			}
			return m
		}}
		s, _ := newForwarding(t, r, dns.Config{})
		for _, test := range []struct {
			name string
			kept time.Duration
		}{
			{"short.com", 5 * time.Second},
			{"long.com", 5 * time.Minute},
			{"missing.com", 10 * time.Second},
			{"empty.com", 10 * time.Second},
			{"nothing.com", 0},
			{"broken.com", 0},
			{"large.com", 0},
		} {
			s.Respond("n1", asker, query(test.name, mdns.TypeA), 65535)
			r.since()
			if test.kept > 0 {
				time.Sleep(test.kept - time.Nanosecond)
				s.Respond("n1", asker, query(strings.ToUpper(test.name), mdns.TypeA), 65535)
				if asked := r.since(); len(asked) > 0 {
					t.Errorf("%s: asked again before the answer expired: %q", test.name, asked)
				}
				time.Sleep(time.Nanosecond)
			}
			s.Respond("n1", asker, query(test.name, mdns.TypeA), 65535)
			if asked := r.since(); len(asked) == 0 {
				t.Errorf("%s: not asked again after %s", test.name, test.kept)
			}
		}
		s.Respond("n1", asker, query("short.com", mdns.TypeA), 512)
		time.Sleep(3 * time.Second)
		if got := s.Respond("n1", asker, query("short.com", mdns.TypeA), 512).Answer[0].Header().Ttl; got != 2 {
			t.Errorf("TTL of an answer of 5 s after 3 s = %d, want 2", got)
		}
		// What was cut for one asker is whole for the next.
		if got := s.Respond("n1", asker, query("short.com", mdns.TypeA), 512); len(got.Answer) != 1 {
			t.Errorf("answer = %s", got)
		}
	})
}

func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &resolvers{answer: func(_, _ string, q *mdns.Msg) *mdns.Msg { return reply(q, 600, "198.51.100.1") }}
		s, _ := newForwarding(t, r, dns.Config{})
		for i := range dns.CacheEntries + 100 {
			s.Respond("n1", asker, query(fmt.Sprintf("h%d.example.com", i), mdns.TypeA), 512)
		}
		if got := s.Cached(); got != dns.CacheEntries {
			t.Errorf("%d answers are kept, want %d", got, dns.CacheEntries)
		}
	})
}

func TestTruncatedAnswersAreFetchedOverTCP(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tcp := true
		r := &resolvers{answer: func(network, _ string, q *mdns.Msg) *mdns.Msg {
			m := reply(q, 60, "198.51.100.1")
			if network == "udp" {
				m.Truncated = true
				return m
			}
			if !tcp {
				return nil
			}
			m.Answer = append(m.Answer, reply(q, 60, "198.51.100.2").Answer...)
			return m
		}}
		s, _ := newForwarding(t, r, dns.Config{})
		got := s.Respond("n1", asker, query("example.com", mdns.TypeA), 512)
		if len(got.Answer) != 2 || got.Truncated {
			t.Errorf("answer = %s, want what came over TCP", got)
		}
		want := []string{"udp 192.0.2.1:53 example.com. A", "tcp 192.0.2.1:53 example.com. A"}
		if diff := cmp.Diff(want, r.since()); diff != "" {
			t.Errorf("asked (-want +got):\n%s", diff)
		}
		tcp = false
		if got := s.Respond("n1", asker, query("example.org", mdns.TypeA), 512); len(got.Answer) != 1 {
			t.Errorf("answer = %s, want what came over UDP", got)
		}
	})
}

func TestNextResolverIsAskedAndPreferredForAWhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		good := "192.0.2.2:53"
		r := &resolvers{}
		r.answer = func(_, resolver string, q *mdns.Msg) *mdns.Msg {
			switch {
			case resolver == good:
				return reply(q, 0, "198.51.100.1")
			case strings.HasPrefix(q.Question[0].Name, "refused"):
				return new(mdns.Msg).SetRcode(q, mdns.RcodeRefused)
			case strings.HasPrefix(q.Question[0].Name, "wrong"):
				m := reply(q, 0, "203.0.113.1")
				m.Question[0].Name = "other.com."
				return m
			default:
				return nil
			}
		}
		s, _ := newForwarding(t, r, dns.Config{})
		for _, test := range []struct {
			name string
			took time.Duration
		}{{"silent.com", 2 * time.Second}, {"refused.com", 0}, {"wrong.com", 0}} {
			began := time.Now()
			got := s.Respond("n1", asker, query(test.name, mdns.TypeA), 512)
			if diff := cmp.Diff([]string{"198.51.100.1"}, data(got.Answer)); diff != "" || time.Since(began) != test.took {
				t.Errorf("%s after %s, want %s (-want +got):\n%s", test.name, time.Since(began), test.took, diff)
			}
			if asked := r.since(); len(asked) != 2 {
				t.Errorf("%s: asked %q, want both resolvers", test.name, asked)
			}
			s.Respond("n1", asker, query(test.name, mdns.TypeA), 512)
			if asked := r.since(); len(asked) != 1 || !strings.Contains(asked[0], good) {
				t.Errorf("%s: then asked %q, want the one that answered", test.name, asked)
			}
			time.Sleep(31 * time.Second)
		}
		good = ""
		began := time.Now()
		if got := s.Respond("n1", asker, query("silent.com", mdns.TypeA), 512); got.Rcode != failed || time.Since(began) > 4*time.Second {
			t.Errorf("without an answer: %s after %s", mdns.RcodeToString[got.Rcode], time.Since(began))
		}
		if got := s.Respond("n1", asker, query("refused.com", mdns.TypeA), 512); got.Rcode != mdns.RcodeRefused {
			t.Errorf("refused by all: %s", mdns.RcodeToString[got.Rcode])
		}
	})
}

func TestResolversAreReadAgainWhenTheyChange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &resolvers{answer: func(_, _ string, q *mdns.Msg) *mdns.Msg { return reply(q, 0, "198.51.100.1") }}
		s, file := newForwarding(t, r, dns.Config{Self: netip.MustParseAddr("169.254.1.1")})
		ask := func() string {
			time.Sleep(time.Second)
			s.Respond("n1", asker, query("example.com", mdns.TypeA), 512)
			return strings.Join(r.since(), ", ")
		}
		if got := ask(); !strings.Contains(got, "192.0.2.1:53") {
			t.Errorf("asked %q", got)
		}
		write(t, file, "127.0.0.53")
		if got := ask(); !strings.Contains(got, "127.0.0.53:53") {
			t.Errorf("after a change asked %q", got)
		}
		// Not itself, nor what is no address.
		write(t, file, "169.254.1.1", "nonsense", "2001:db8::53")
		if got := ask(); !strings.Contains(got, "[2001:db8::53]:53") {
			t.Errorf("asked %q, want the resolver that is not the server itself", got)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if got := ask(); !strings.Contains(got, "[2001:db8::53]:53") {
			t.Errorf("while the file is away asked %q, want the last known", got)
		}
		write(t, file, "169.254.1.1")
		if got := ask(); got != "" {
			t.Errorf("asked %q, want no resolver", got)
		}
	})
}

// A task that asks a dead resolver again and again keeps no other task from asking.
func TestOpenQueriesAreLimited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &resolvers{answer: func(_, _ string, q *mdns.Msg) *mdns.Msg {
			if strings.HasPrefix(q.Question[0].Name, "dead") {
				return nil
			}
			return reply(q, 0, "198.51.100.1")
		}}
		s, _ := newForwarding(t, r, dns.Config{Forwards: 8, AllForwards: 6})
		other, third := netip.MustParseAddr("10.64.16.10"), netip.MustParseAddr("10.64.16.11")
		s.Attach(attachment("t10", "s9", &networkv1.Attachment{NetworkId: "n1", Addresses: []string{other.String()}}))
		s.Attach(attachment("t11", "s9", &networkv1.Attachment{NetworkId: "n1", Addresses: []string{third.String()}}))
		var wg sync.WaitGroup
		flood := func(from netip.Addr, n int) {
			for i := range n {
				wg.Go(func() { s.Respond("n1", from, query(fmt.Sprintf("dead%d.%s", i, from), mdns.TypeA), 512) })
			}
			synctest.Wait()
		}
		flood(asker, 100)
		if got := len(r.since()); got != 8 {
			t.Errorf("a task has %d open queries, want 8", got)
		}
		if got := s.Stats(); got.Failures != 92 {
			t.Errorf("counts = %+v, want 92 failures", got)
		}
		if got := s.Respond("n1", asker, query("web", mdns.TypeA), 512); got.Rcode != ok {
			t.Errorf("the flooding task gets %s for a name of the zone", mdns.RcodeToString[got.Rcode])
		}
		if got := s.Respond("n1", other, query("example.com", mdns.TypeA), 512); got.Rcode != ok {
			t.Errorf("another task gets %s", mdns.RcodeToString[got.Rcode])
		}
		r.since()
		flood(other, 100)
		if got := len(r.since()); got != 6 {
			t.Errorf("a second task has %d open queries, want 4 of its own and the 2 that all tasks have left", got)
		}
		if got := s.Respond("n1", third, query("example.org", mdns.TypeA), 512); got.Rcode != ok {
			t.Errorf("with all shared places taken: %s", mdns.RcodeToString[got.Rcode])
		}
		r.since()
		flood(third, 100)
		if got := len(r.since()); got != 4 {
			t.Errorf("a third task has %d open queries, want 4 of its own", got)
		}
		wg.Wait()
		if got := s.Respond("n1", third, query("example.com", mdns.TypeA), 512); got.Rcode != ok {
			t.Errorf("after the flood: %s", mdns.RcodeToString[got.Rcode])
		}
	})
}

func TestSameQuestionIsAskedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		r := &resolvers{answer: func(_, _ string, q *mdns.Msg) *mdns.Msg {
			<-release
			return reply(q, 0, "198.51.100.1")
		}}
		s, _ := newForwarding(t, r, dns.Config{})
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if got := s.Respond("n1", asker, query("example.com", mdns.TypeA), 512); got.Rcode != ok {
					t.Errorf("%s", got)
				}
			})
		}
		synctest.Wait()
		close(release)
		wg.Wait()
		if asked := r.since(); len(asked) != 1 {
			t.Errorf("asked %q, want one query", asked)
		}
	})
}

func TestUnreachableResolversAreFailures(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "resolv.conf")
	write(t, file, "192.0.2.1")
	s := dns.New(dns.Config{ResolvConf: file, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("unreachable") }})
	s.Apply(world())
	s.Attach(attachment("t9", "s9", &networkv1.Attachment{NetworkId: "n1", Addresses: []string{asker.String()}}))
	got := s.Respond("n1", asker, query("example.com", mdns.TypeA), 512)
	if stats := s.Stats(); got.Rcode != failed || stats.Failures != 1 || stats.Forwarded != 1 || !slices.Equal(got.Answer, nil) {
		t.Errorf("%s, counts %+v", got, stats)
	}
}
