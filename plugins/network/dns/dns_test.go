package dns_test

import (
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/network/dns"
)

// asker is a task that is on both networks.
var asker = netip.MustParseAddr("10.64.16.9")

// world is a request with two networks: "front" with a service in each mode, and "back",
// which is internal.
func world() *networkv1.ApplyRequest {
	return &networkv1.ApplyRequest{
		Complete: true,
		Networks: []*networkv1.Network{
			{Id: "n1", Name: "front", Subnets: []string{"10.64.0.0/16", "fd00::/64"}, NodeAddresses: []string{"10.64.16.0"}},
			{Id: "n2", Name: "back", Subnets: []string{"10.65.0.0/16"}, Internal: true, NodeAddresses: []string{"10.65.16.0"}},
			{Id: "n3", Name: "other", Subnets: []string{"10.64.0.0/16"}},
		},
		Services: []*networkv1.Service{
			{
				NetworkId: "n1", Id: "s1", Name: "Web", Mode: musterv1.EndpointSpec_VIP, VirtualIps: []string{"10.64.0.2", "fd00::2"},
				Aliases: []string{"www", "site.internal", "shared"},
				Ports: []*musterv1.PortConfig{
					{Name: "http", Protocol: musterv1.PortConfig_TCP, TargetPort: 80},
					{Name: "http", Protocol: musterv1.PortConfig_UDP, TargetPort: 443},
				},
			},
			{
				NetworkId: "n1", Id: "s2", Name: "db", Mode: musterv1.EndpointSpec_DNSRR, Aliases: []string{"shared"},
				Ports: []*musterv1.PortConfig{{Name: "sql", TargetPort: 5432}},
			},
			{NetworkId: "n1", Id: "s3", Name: "idle", Mode: musterv1.EndpointSpec_DNSRR},
			{NetworkId: "n1", Id: "s4", Name: "agent", Mode: musterv1.EndpointSpec_VIP, VirtualIps: []string{"10.64.0.4"}},
			{NetworkId: "n2", Id: "s1", Name: "Web", Mode: musterv1.EndpointSpec_VIP, VirtualIps: []string{"10.65.0.2"}},
			{NetworkId: "n2", Id: "s5", Name: "queue", Mode: musterv1.EndpointSpec_VIP, VirtualIps: []string{"10.65.0.5"}},
			{NetworkId: "n3", Id: "s6", Name: "secret", Mode: musterv1.EndpointSpec_VIP, VirtualIps: []string{"10.64.0.6"}},
		},
		Backends: []*networkv1.Backends{
			{NetworkId: "n1", ServiceId: "s1", Complete: true, Backends: []*networkv1.Backend{
				{TaskId: "t1", NodeId: "node1", Slot: 1, Addresses: []string{"10.64.16.1", "fd00::1001"}},
				{TaskId: "t2", NodeId: "node2", Slot: 2, Addresses: []string{"10.64.16.65"}},
			}},
			{NetworkId: "n1", ServiceId: "s2", Complete: true, Backends: []*networkv1.Backend{
				{TaskId: "t3", NodeId: "node1", Slot: 1, Addresses: []string{"10.64.16.3"}},
				{TaskId: "t4", NodeId: "node2", Slot: 1, Addresses: []string{"10.64.16.66"}},
			}},
			{NetworkId: "n1", ServiceId: "s4", Complete: true, Backends: []*networkv1.Backend{
				{TaskId: "t5", NodeId: "node1", Addresses: []string{"10.64.16.5"}},
			}},
		},
	}
}

func attachment(task, service string, attachments ...*networkv1.Attachment) *networkv1.AttachRequest {
	return &networkv1.AttachRequest{TaskId: task, ServiceId: service, Attachments: attachments}
}

// newServer returns a server that knows the world, whose host has no resolvers.
func newServer(t testing.TB) *dns.Server {
	t.Helper()
	s := dns.New(dns.Config{ResolvConf: filepath.Join(t.TempDir(), "none")})
	s.Apply(world())
	s.Attach(attachment("t9", "s9",
		&networkv1.Attachment{NetworkId: "n1", Addresses: []string{"10.64.16.9", "fd00::1009"}},
		&networkv1.Attachment{NetworkId: "n2", Addresses: []string{"10.65.16.9"}},
	))
	s.Attach(attachment("t3", "s2", &networkv1.Attachment{NetworkId: "n1", Addresses: []string{"10.64.16.3"}, Aliases: []string{"primary", "www"}}))
	s.Attach(attachment("t8", "s5", &networkv1.Attachment{NetworkId: "n2", Addresses: []string{"10.65.16.8"}}))
	return s
}

func query(name string, kind uint16) *mdns.Msg {
	return new(mdns.Msg).SetQuestion(mdns.Fqdn(name), kind)
}

// data returns the data of records, sorted, without names and times.
func data(records []mdns.RR) []string {
	var all []string
	for _, rr := range records {
		all = append(all, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	slices.Sort(all)
	return all
}

const (
	ok     = mdns.RcodeSuccess
	absent = mdns.RcodeNameError
	failed = mdns.RcodeServerFailure
)

func TestNames(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for _, test := range []struct {
		name  string
		kind  uint16
		rcode int
		want  []string
	}{
		{"web", mdns.TypeA, ok, []string{"10.64.0.2"}},
		{"WEB", mdns.TypeA, ok, []string{"10.64.0.2"}},
		{"web", mdns.TypeAAAA, ok, []string{"fd00::2"}},
		{"web", mdns.TypeMX, ok, nil},
		{"www", mdns.TypeA, ok, []string{"10.64.0.2"}},
		{"site.internal", mdns.TypeA, ok, []string{"10.64.0.2"}},
		{"web.front", mdns.TypeA, ok, []string{"10.64.0.2"}},
		{"web.back", mdns.TypeA, ok, []string{"10.65.0.2"}},
		{"web.other", mdns.TypeA, failed, nil},
		{"site.internal.front", mdns.TypeA, ok, []string{"10.64.0.2"}},
		{"queue", mdns.TypeA, ok, []string{"10.65.0.5"}},
		{"queue", mdns.TypeAAAA, ok, nil},
		{"secret", mdns.TypeA, failed, nil},
		{"db", mdns.TypeA, ok, []string{"10.64.16.3", "10.64.16.66"}},
		{"db", mdns.TypeAAAA, ok, nil},
		{"shared", mdns.TypeA, ok, []string{"10.64.0.2", "10.64.16.3", "10.64.16.66"}},
		{"idle", mdns.TypeA, absent, nil},
		{"idle", mdns.TypeAAAA, absent, nil},
		{"tasks.idle", mdns.TypeA, absent, nil},
		{"tasks.web", mdns.TypeA, ok, []string{"10.64.16.1", "10.64.16.65"}},
		{"tasks.web", mdns.TypeAAAA, ok, []string{"fd00::1001"}},
		{"tasks.www.front", mdns.TypeA, ok, []string{"10.64.16.1", "10.64.16.65"}},
		{"tasks.db", mdns.TypeA, ok, []string{"10.64.16.3", "10.64.16.66"}},
		{"web.1.t1", mdns.TypeA, ok, []string{"10.64.16.1"}},
		{"Web.1.T1.front", mdns.TypeA, ok, []string{"10.64.16.1"}},
		{"web.2.t1", mdns.TypeA, failed, nil},
		{"web.1.gone", mdns.TypeA, failed, nil},
		{"web.example.com", mdns.TypeA, failed, nil},
		{"db.1", mdns.TypeA, ok, []string{"10.64.16.3", "10.64.16.66"}},
		{"web.2.front", mdns.TypeA, ok, []string{"10.64.16.65"}},
		{"web.3", mdns.TypeA, absent, nil},
		{"web.0", mdns.TypeA, failed, nil},
		{"agent.node1.t5", mdns.TypeA, ok, []string{"10.64.16.5"}},
		{"primary", mdns.TypeA, ok, []string{"10.64.16.3"}},
		{"_http._tcp.web", mdns.TypeSRV, ok, []string{"0 0 80 web.front."}},
		{"_HTTP._UDP.Web.front", mdns.TypeSRV, ok, []string{"0 0 443 web.front."}},
		{"_http._tcp.web", mdns.TypeA, ok, nil},
		{"_ftp._tcp.web", mdns.TypeSRV, absent, nil},
		{"_http._tcp.unknown", mdns.TypeSRV, failed, nil},
		{"_sql._tcp.db", mdns.TypeSRV, ok, []string{"0 0 5432 db.1.t3.front.", "0 0 5432 db.1.t4.front."}},
		{"_http._tcp.tasks.web", mdns.TypeSRV, ok, []string{"0 0 80 web.1.t1.front.", "0 0 80 web.2.t2.front."}},
		{"2.0.64.10.in-addr.arpa", mdns.TypePTR, ok, []string{"web.front."}},
		{"1.16.64.10.in-addr.arpa", mdns.TypePTR, ok, []string{"web.1.t1.front."}},
		{"5.16.64.10.in-addr.arpa", mdns.TypePTR, ok, []string{"agent.node1.t5.front."}},
		{"200.16.64.10.in-addr.arpa", mdns.TypePTR, absent, nil},
		{"8.8.8.8.in-addr.arpa", mdns.TypePTR, failed, nil},
		{"1.0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa", mdns.TypePTR, ok, []string{"web.1.t1.front."}},
		{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.D.F.IP6.ARPA", mdns.TypePTR, ok, []string{"web.front."}},
		{"2.0.64.10.in-addr.arpa", mdns.TypeA, ok, nil},
		{"example.com", mdns.TypeA, failed, nil},
		{".", mdns.TypeNS, failed, nil},
	} {
		got := s.Respond("n1", asker, query(test.name, test.kind), 1<<16-1)
		if diff := cmp.Diff(test.want, data(got.Answer)); diff != "" || got.Rcode != test.rcode {
			t.Errorf("%s %s: %s, want %s (-want +got):\n%s", mdns.TypeToString[test.kind], test.name,
				mdns.RcodeToString[got.Rcode], mdns.RcodeToString[test.rcode], diff)
		}
		if !got.Response || !got.RecursionAvailable || got.Authoritative != (test.rcode != failed) {
			t.Errorf("%s: header %+v", test.name, got.MsgHdr)
		}
		for _, rr := range got.Answer {
			if rr.Header().Ttl != 1 || rr.Header().Name != mdns.Fqdn(test.name) {
				t.Errorf("%s: record %s, want the name asked for and a TTL of 1", test.name, rr)
			}
		}
	}
}

func TestServiceRecordsBringAddresses(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for name, want := range map[string][]string{
		"_http._tcp.web":       {"10.64.0.2", "fd00::2"},
		"_http._tcp.tasks.web": {"10.64.16.1", "10.64.16.65", "fd00::1001"},
	} {
		got := s.Respond("n1", asker, query(name, mdns.TypeSRV), 1<<16-1)
		if diff := cmp.Diff(want, data(got.Extra)); diff != "" {
			t.Errorf("%s: additional records (-want +got):\n%s", name, diff)
		}
	}
}

// Which networks' names a task sees follows from the address that it asks from.
func TestAnswersDependOnAsker(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for _, test := range []struct {
		network, from, name string
		rcode               int
		want                []string
	}{
		{"n1", "10.64.16.9", "web", ok, []string{"10.64.0.2"}},
		{"n1", "fd00::1009", "web", ok, []string{"10.64.0.2"}},
		{"n2", "10.65.16.9", "web", ok, []string{"10.64.0.2"}},
		{"n1", "::ffff:10.64.16.9", "web", ok, []string{"10.64.0.2"}},
		{"n2", "10.65.16.8", "web", ok, []string{"10.65.0.2"}},
		{"n2", "10.65.16.8", "db", absent, nil},
		{"n1", "10.64.16.3", "queue", failed, nil},
		// The same address on another network is someone else.
		{"n3", "10.64.16.9", "web", mdns.RcodeRefused, nil},
		{"n1", "10.64.16.77", "web", mdns.RcodeRefused, nil},
		{"n9", "10.64.16.9", "web", mdns.RcodeRefused, nil},
		// A node sees the network that it asks on.
		{"n2", "10.65.16.0", "web", ok, []string{"10.65.0.2"}},
		{"n2", "10.65.16.0", "example.com", absent, nil},
		{"n1", "10.64.16.0", "example.com", absent, nil},
		// A task on internal networks alone reaches nothing else, by no name.
		{"n2", "10.65.16.8", "example.com", absent, nil},
	} {
		got := s.Respond(test.network, netip.MustParseAddr(test.from), query(test.name, mdns.TypeA), 512)
		if diff := cmp.Diff(test.want, data(got.Answer)); diff != "" || got.Rcode != test.rcode {
			t.Errorf("%s asked by %s on %s: %s (-want +got):\n%s", test.name, test.from, test.network, mdns.RcodeToString[got.Rcode], diff)
		}
	}
	s.Detach("t9")
	s.Detach("t9")
	if got := s.Respond("n1", asker, query("web", mdns.TypeA), 512); got.Rcode != mdns.RcodeRefused {
		t.Errorf("answer to a detached task: %s", mdns.RcodeToString[got.Rcode])
	}
	// A new task with the address is another.
	s.Attach(attachment("t10", "s9", &networkv1.Attachment{NetworkId: "n1", Addresses: []string{"10.64.16.9"}}))
	if got := s.Respond("n1", asker, query("queue", mdns.TypeA), 512); got.Rcode != failed {
		t.Errorf("answer for a network of the task before: %s", got)
	}
}

func TestChangesTakeEffect(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for i, step := range []struct {
		change *networkv1.ApplyRequest
		name   string
		rcode  int
		want   []string
	}{
		{&networkv1.ApplyRequest{Backends: []*networkv1.Backends{{
			NetworkId: "n1", ServiceId: "s2", Removed: []string{"t3"},
			Backends: []*networkv1.Backend{{TaskId: "t6", Slot: 2, Addresses: []string{"10.64.16.3"}}},
		}}}, "db", ok, []string{"10.64.16.3", "10.64.16.66"}},
		{&networkv1.ApplyRequest{}, "3.16.64.10.in-addr.arpa", ok, []string{"db.2.t6.front."}},
		// The alias of a task goes with it.
		{&networkv1.ApplyRequest{}, "primary", absent, nil},
		{&networkv1.ApplyRequest{Backends: []*networkv1.Backends{{
			NetworkId: "n1", ServiceId: "s2", Backends: []*networkv1.Backend{{TaskId: "t6", Slot: 2, Addresses: []string{"10.64.16.7"}}},
		}}}, "db.2", ok, []string{"10.64.16.7"}},
		{&networkv1.ApplyRequest{}, "3.16.64.10.in-addr.arpa", absent, nil},
		{&networkv1.ApplyRequest{Backends: []*networkv1.Backends{{
			NetworkId: "n1", ServiceId: "s2", Complete: true, Backends: []*networkv1.Backend{{TaskId: "t7", Slot: 1, Addresses: []string{"10.64.16.8"}}},
		}}}, "db", ok, []string{"10.64.16.8"}},
		// From virtual addresses to those of the tasks, and back.
		{&networkv1.ApplyRequest{Services: []*networkv1.Service{{
			NetworkId: "n1", Id: "s1", Name: "web", Mode: musterv1.EndpointSpec_DNSRR, Aliases: []string{"new"},
		}}}, "new", ok, []string{"10.64.16.1", "10.64.16.65"}},
		{&networkv1.ApplyRequest{}, "www", absent, nil},
		{&networkv1.ApplyRequest{}, "2.0.64.10.in-addr.arpa", absent, nil},
		{&networkv1.ApplyRequest{Services: []*networkv1.Service{{
			NetworkId: "n1", Id: "s1", Name: "web", Mode: musterv1.EndpointSpec_VIP, VirtualIps: []string{"10.64.0.9"},
		}}}, "web", ok, []string{"10.64.0.9"}},
		{&networkv1.ApplyRequest{RemovedServices: []*networkv1.ServiceRef{{NetworkId: "n1", ServiceId: "s1"}}}, "web.front", failed, nil},
		// The next network of the task has one of that name.
		{&networkv1.ApplyRequest{}, "web", ok, []string{"10.65.0.2"}},
		{&networkv1.ApplyRequest{}, "1.16.64.10.in-addr.arpa", absent, nil},
		{&networkv1.ApplyRequest{Networks: []*networkv1.Network{{Id: "n2", Name: "rear", Subnets: []string{"10.65.0.0/16"}, Internal: true}}}, "web.rear", ok, []string{"10.65.0.2"}},
		{&networkv1.ApplyRequest{RemovedNetworks: []string{"n2"}}, "queue", failed, nil},
		{world(), "queue", ok, []string{"10.65.0.5"}},
		{&networkv1.ApplyRequest{Complete: true}, "web", absent, nil},
	} {
		s.Apply(step.change)
		kind := mdns.TypeA
		if strings.HasSuffix(step.name, ".arpa") {
			kind = mdns.TypePTR
		}
		got := s.Respond("n1", asker, query(step.name, kind), 512)
		if diff := cmp.Diff(step.want, data(got.Answer)); diff != "" || got.Rcode != step.rcode {
			t.Errorf("step %d: %s: %s, want %s (-want +got):\n%s", i, step.name, mdns.RcodeToString[got.Rcode], mdns.RcodeToString[step.rcode], diff)
		}
	}
}

// An alias that is a service's own name adds nothing twice.
// TestIngressNetworkHasNoNames adds the network of published ports, with a task that is on
// it alone and one that is on an internal network otherwise.
func TestIngressNetworkHasNoNames(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.Apply(&networkv1.ApplyRequest{
		Networks: []*networkv1.Network{{Id: "n4", Name: "ingress", Subnets: []string{"10.66.0.0/16"}, Ingress: true}},
		Services: []*networkv1.Service{
			{NetworkId: "n4", Id: "s7", Name: "shop", VirtualIps: []string{"10.66.0.2"}, Ports: []*musterv1.PortConfig{{Name: "http", TargetPort: 80}}},
		},
		Backends: []*networkv1.Backends{{NetworkId: "n4", ServiceId: "s7", Complete: true, Backends: []*networkv1.Backend{
			{TaskId: "t20", Slot: 1, Addresses: []string{"10.66.16.2"}},
		}}},
	})
	s.Attach(attachment("t20", "s7", &networkv1.Attachment{NetworkId: "n4", Addresses: []string{"10.66.16.2"}, Aliases: []string{"own"}}))
	s.Attach(attachment("t21", "s8",
		&networkv1.Attachment{NetworkId: "n2", Addresses: []string{"10.65.16.21"}},
		&networkv1.Attachment{NetworkId: "n4", Addresses: []string{"10.66.16.21"}},
	))
	for _, test := range []struct {
		network, from, name string
		kind                uint16
		rcode               int
	}{
		// The host has no resolvers: a question that is passed on fails.
		{"n4", "10.66.16.2", "shop", mdns.TypeA, failed},
		{"n4", "10.66.16.2", "tasks.shop", mdns.TypeA, failed},
		{"n4", "10.66.16.2", "shop.ingress", mdns.TypeA, failed},
		{"n4", "10.66.16.2", "shop.1.t20", mdns.TypeA, failed},
		{"n4", "10.66.16.2", "own", mdns.TypeA, failed},
		{"n4", "10.66.16.2", "_http._tcp.shop", mdns.TypeSRV, failed},
		{"n4", "10.66.16.2", "2.0.66.10.in-addr.arpa", mdns.TypePTR, absent},
		{"n4", "10.66.16.2", "2.16.66.10.in-addr.arpa", mdns.TypePTR, absent},
		{"n2", "10.65.16.21", "shop", mdns.TypeA, absent},
		{"n2", "10.65.16.21", "shop.ingress", mdns.TypeA, absent},
		// A published port opens no way out for a task of internal networks.
		{"n2", "10.65.16.21", "example.com", mdns.TypeA, absent},
		{"n4", "10.66.16.21", "example.com", mdns.TypeA, absent},
		{"n4", "10.66.16.21", "queue", mdns.TypeA, ok},
	} {
		got := s.Respond(test.network, netip.MustParseAddr(test.from), query(test.name, test.kind), 512)
		if got.Rcode != test.rcode || got.Rcode != ok && len(got.Answer) > 0 {
			t.Errorf("%s asked by %s: %s %v, want %s", test.name, test.from, mdns.RcodeToString[got.Rcode], data(got.Answer), mdns.RcodeToString[test.rcode])
		}
	}
}

func TestRepeatedAliasCountsOnce(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.Apply(&networkv1.ApplyRequest{Services: []*networkv1.Service{{
		NetworkId: "n1", Id: "s1", Name: "web", VirtualIps: []string{"10.64.0.2"}, Aliases: []string{"web", "WEB", "a", "a"},
	}}})
	for _, name := range []string{"web", "a"} {
		got := s.Respond("n1", asker, query(name, mdns.TypeA), 512)
		if diff := cmp.Diff([]string{"10.64.0.2"}, data(got.Answer)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestWrongQueriesAreRefused(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for name, test := range map[string]struct {
		spoil func(*mdns.Msg)
		want  int
	}{
		"class":        {func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS }, mdns.RcodeRefused},
		"transfer":     {func(m *mdns.Msg) { m.Question[0].Qtype = mdns.TypeAXFR }, mdns.RcodeRefused},
		"opcode":       {func(m *mdns.Msg) { m.Opcode = mdns.OpcodeNotify }, mdns.RcodeNotImplemented},
		"no question":  {func(m *mdns.Msg) { m.Question = nil }, mdns.RcodeFormatError},
		"EDNS version": {func(m *mdns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, mdns.RcodeBadVers},
	} {
		m := query("web", mdns.TypeA)
		test.spoil(m)
		got := s.Respond("n1", asker, m, 512)
		if got.Rcode != test.want || len(got.Answer) > 0 {
			t.Errorf("%s: %s, want %s", name, got, mdns.RcodeToString[test.want])
		}
		if _, err := got.Pack(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := s.Stats(); got.Refused != 5 || got.Answers != 0 {
		t.Errorf("counts = %+v, want 5 refused", got)
	}
}

// big makes the service "db" have many backends.
func big(s *dns.Server, n int) {
	backends := &networkv1.Backends{NetworkId: "n1", ServiceId: "s2", Complete: true}
	for i := range n {
		backends.Backends = append(backends.Backends, &networkv1.Backend{
			TaskId: fmt.Sprintf("b%d", i), Slot: uint64(i + 1), Addresses: []string{fmt.Sprintf("10.64.%d.%d", 64+i/256, i%256), fmt.Sprintf("fd00::%x", 0x1000+i)},
		})
	}
	s.Apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{backends}})
}

func TestAnswersFitAndSayWhenTheyAreCut(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for _, test := range []struct {
		backends, size int
		kind           uint16
		truncated      bool
		least, most    int
	}{
		{10, 512, mdns.TypeA, false, 10, 10},
		{40, 512, mdns.TypeA, true, 20, 32},
		{40, 1232, mdns.TypeA, false, 40, 40},
		{100, 1232, mdns.TypeA, true, 60, 76},
		{1500, 65535, mdns.TypeA, false, 1500, 1500},
		{5000, 65535, mdns.TypeA, false, dns.MaxAddresses, dns.MaxAddresses},
		{5000, 65535, mdns.TypeAAAA, false, dns.MaxAddresses, dns.MaxAddresses},
		{5000, 512, mdns.TypeAAAA, true, 10, 18},
	} {
		big(s, test.backends)
		got := s.Respond("n1", asker, query("db", test.kind), test.size)
		if got.Truncated != test.truncated || len(got.Answer) < test.least || len(got.Answer) > test.most {
			t.Errorf("%+v: %d records, truncated = %t", test, len(got.Answer), got.Truncated)
		}
		raw, err := got.Pack()
		if err != nil || len(raw) > test.size {
			t.Errorf("%+v: %d bytes, %v", test, len(raw), err)
		}
		if got := data(got.Answer); len(slices.Compact(got)) != len(got) {
			t.Errorf("%+v: an address is named twice", test)
		}
	}
	for _, size := range []int{512, 1232, 65535} {
		got := s.Respond("n1", asker, query("_sql._tcp.db", mdns.TypeSRV), size)
		raw, err := got.Pack()
		if err != nil || len(raw) > size || got.Truncated != (size < 65535) || len(got.Answer) == 0 {
			t.Errorf("SRV in %d bytes: %d bytes, %d records, truncated = %t, %v", size, len(raw), len(got.Answer), got.Truncated, err)
		}
	}
}

// Each of several addresses comes first about equally often.
func TestAddressesComeInRandomOrder(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	big(s, 4)
	first := map[string]int{}
	for range 4000 {
		first[s.Respond("n1", asker, query("db", mdns.TypeA), 512).Answer[0].(*mdns.A).A.String()]++
	}
	for address, n := range first {
		// Ten standard deviations.
		if n < 700 || n > 1300 {
			t.Errorf("%s is first %d times of 4000, want about 1000", address, n)
		}
	}
	if len(first) != 4 {
		t.Errorf("first are %v, want 4 addresses", first)
	}
}

func BenchmarkRespond(b *testing.B) {
	s := newServer(b)
	for name, kind := range map[string]uint16{"web": mdns.TypeA, "tasks.web": mdns.TypeA, "db.1.t3": mdns.TypeA, "idle": mdns.TypeA} {
		b.Run(name, func(b *testing.B) {
			raw, err := query(name, kind).Pack()
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				var m mdns.Msg
				if err := m.Unpack(raw); err != nil {
					b.Fatal(err)
				}
				if _, err := s.Respond("n1", asker, &m, 512).Pack(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// One answer about a service with many tasks costs as much as what is in it.
func BenchmarkRespondManyTasks(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		for _, kind := range []uint16{mdns.TypeA, mdns.TypeAAAA} {
			b.Run(fmt.Sprintf("%s of %d", mdns.TypeToString[kind], n), func(b *testing.B) {
				s := newServer(b)
				applyMany(s, n)
				raw, err := query("many", kind).Pack()
				if err != nil {
					b.Fatal(err)
				}
				for b.Loop() {
					var m mdns.Msg
					if err := m.Unpack(raw); err != nil {
						b.Fatal(err)
					}
					if _, err := s.Respond("n1", asker, &m, 512).Pack(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// applyMany adds a service of mode DNSRR with n tasks.
func applyMany(s *dns.Server, n int) {
	many := &networkv1.Backends{NetworkId: "n1", ServiceId: "many", Complete: true}
	for i := range n {
		many.Backends = append(many.Backends, &networkv1.Backend{
			TaskId: fmt.Sprintf("many%d", i), NodeId: "node", Slot: uint64(i + 1), Addresses: []string{netip.AddrFrom4([4]byte{10, 65, byte(i >> 8), byte(i)}).String()},
		})
	}
	s.Apply(&networkv1.ApplyRequest{
		Services: []*networkv1.Service{{NetworkId: "n1", Id: "many", Name: "many", Mode: musterv1.EndpointSpec_DNSRR}},
		Backends: []*networkv1.Backends{many},
	})
}

func TestAnswersSpreadOverAllTasks(t *testing.T) {
	s := newServer(t)
	const tasks, questions = 200, 2000
	applyMany(s, tasks)
	seen := make(map[string]int)
	size := 0
	for range questions {
		answer := s.Respond("n1", asker, query("many", mdns.TypeA), 512).Answer
		size = len(answer)
		once := make(map[string]bool)
		for _, rr := range answer {
			a := rr.(*mdns.A).A.String()
			if once[a] {
				t.Fatalf("an answer has %s twice", a)
			}
			once[a] = true
			seen[a]++
		}
	}
	want := float64(questions*size) / tasks
	if len(seen) != tasks {
		t.Errorf("%d of %d tasks are in answers", len(seen), tasks)
	}
	for a, n := range seen {
		// Six standard deviations and more.
		if math.Abs(float64(n)-want) > want/2 {
			t.Errorf("%s is in %d answers, want about %.0f", a, n, want)
		}
	}
}

func FuzzQuery(f *testing.F) {
	for _, name := range []string{"web", "_http._tcp.web.front", "tasks.db", "1.16.64.10.in-addr.arpa", "web.1.t1"} {
		raw, err := query(name, mdns.TypeA).SetEdns0(4096, true).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, 512)
	}
	f.Fuzz(func(t *testing.T, raw []byte, size int) {
		m := new(mdns.Msg)
		if m.Unpack(raw) != nil {
			return
		}
		size = min(max(size, 512), 65535)
		got := newServer(t).Respond("n1", asker, m, size)
		out, err := got.Pack()
		if err != nil {
			// Names of the query that cannot be written again are miekg/dns's matter.
			if _, again := m.Pack(); again == nil {
				t.Errorf("response cannot be packed: %v\n%s", err, got)
			}
			return
		}
		if len(out) > size {
			t.Errorf("response has %d bytes of at most %d\n%s", len(out), size, got)
		}
	})
}
