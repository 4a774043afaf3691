package dns_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/network/dns"
)

// model is what a dispatcher means the networks to be.
type model struct {
	networks map[string]*networkv1.Network
	services map[string]*networkv1.Service
	// backends are by service and task.
	backends map[string]map[string]*networkv1.Backend
}

// complete returns the request that says all of it.
func (m *model) complete() *networkv1.ApplyRequest {
	r := &networkv1.ApplyRequest{Complete: true}
	for _, key := range slices.Sorted(maps.Keys(m.networks)) {
		r.Networks = append(r.Networks, m.networks[key])
	}
	for _, key := range slices.Sorted(maps.Keys(m.services)) {
		s := m.services[key]
		r.Services = append(r.Services, s)
		all := &networkv1.Backends{NetworkId: s.NetworkId, ServiceId: s.Id, Complete: true}
		for _, task := range slices.Sorted(maps.Keys(m.backends[key])) {
			all.Backends = append(all.Backends, m.backends[key][task])
		}
		r.Backends = append(r.Backends, all)
	}
	return proto.CloneOf(r)
}

// change draws a change, and makes it in the model too.
func (m *model) change(t *rapid.T) *networkv1.ApplyRequest {
	r := &networkv1.ApplyRequest{}
	network := rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "network")
	service := rapid.SampledFrom([]string{"s1", "s2", "s3"}).Draw(t, "service")
	key := network + service
	names := rapid.SampledFrom([]string{"a", "b", "c.d"})
	_, hasNetwork := m.networks[network]
	_, hasService := m.services[key]
	switch kind := rapid.SampledFrom([]string{"network", "no network", "service", "service", "no service", "backends", "backends", "backends"}).Draw(t, "kind"); {
	case kind == "no network":
		delete(m.networks, network)
		maps.DeleteFunc(m.services, func(_ string, s *networkv1.Service) bool { return s.NetworkId == network })
		r.RemovedNetworks = []string{network}
	case kind == "network" || !hasNetwork:
		m.networks[network] = &networkv1.Network{
			Id: network, Name: rapid.SampledFrom([]string{"a", "front", "back"}).Draw(t, "name"), Subnets: []string{"10.0.0.0/24"},
		}
		r.Networks = []*networkv1.Network{m.networks[network]}
	case kind == "no service":
		delete(m.services, key)
		delete(m.backends, key)
		r.RemovedServices = []*networkv1.ServiceRef{{NetworkId: network, ServiceId: service}}
	case kind == "service" || !hasService:
		if !hasService {
			m.backends[key] = map[string]*networkv1.Backend{}
		}
		m.services[key] = &networkv1.Service{
			NetworkId: network, Id: service, Name: names.Draw(t, "name"),
			Mode:       rapid.SampledFrom([]musterv1.EndpointSpec_Mode{musterv1.EndpointSpec_VIP, musterv1.EndpointSpec_DNSRR}).Draw(t, "mode"),
			VirtualIps: []string{"10.0.0." + service[1:]}, Aliases: rapid.SliceOfN(names, 0, 2).Draw(t, "aliases"),
		}
		r.Services = []*networkv1.Service{m.services[key]}
	default:
		change := &networkv1.Backends{NetworkId: network, ServiceId: service, Complete: rapid.Bool().Draw(t, "complete")}
		if change.Complete {
			m.backends[key] = map[string]*networkv1.Backend{}
		}
		// An address is that of one task at a time, as the worker sees to.
		task := rapid.IntRange(0, 3)
		for _, i := range rapid.SliceOfNDistinct(task, 0, 3, rapid.ID).Draw(t, "removed") {
			delete(m.backends[key], taskID(key, i))
			change.Removed = append(change.Removed, taskID(key, i))
		}
		for _, i := range rapid.SliceOfNDistinct(task, 0, 3, rapid.ID).Draw(t, "tasks") {
			b := &networkv1.Backend{
				TaskId: taskID(key, i), NodeId: "node", Slot: rapid.Uint64Range(0, 2).Draw(t, "slot"),
				Addresses: []string{fmt.Sprintf("10.0.0.%d", 20*int(service[1]-'0')+2*i+rapid.IntRange(0, 1).Draw(t, "address"))},
			}
			m.backends[key][b.TaskId] = b
			change.Backends = append(change.Backends, b)
		}
		r.Backends = []*networkv1.Backends{change}
	}
	return proto.CloneOf(r)
}

func taskID(key string, i int) string { return fmt.Sprintf("%st%d", key, i) }

// answers returns what a server says to all questions that matter.
func answers(s *dns.Server) map[string]string {
	all := map[string]string{}
	ask := func(name string, kind uint16) {
		got := s.Respond("n1", asker, query(name, kind), 65535)
		all[name] = fmt.Sprint(mdns.RcodeToString[got.Rcode], data(got.Answer))
	}
	names := []string{"a", "b", "c.d", "a.1", "b.2"}
	for _, key := range []string{"n1s1", "n2s2"} {
		for i := range 4 {
			names = append(names, "a.1."+taskID(key, i), "b.node."+taskID(key, i))
		}
	}
	for _, name := range names {
		for _, suffix := range []string{"", ".a", ".front"} {
			ask(name+suffix, mdns.TypeA)
			ask("tasks."+name+suffix, mdns.TypeA)
		}
	}
	for i := range 100 {
		ask(fmt.Sprintf("%d.0.0.10.in-addr.arpa", i), mdns.TypePTR)
	}
	return all
}

func TestChangesAddUpToWhatACompleteRequestSays(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	newEmpty := func() *dns.Server {
		s := dns.New(dns.Config{ResolvConf: dir})
		s.Attach(attachment("t9", "s9",
			&networkv1.Attachment{NetworkId: "n1", Addresses: []string{asker.String()}}, &networkv1.Attachment{NetworkId: "n2"}))
		return s
	}
	rapid.Check(t, func(t *rapid.T) {
		m := &model{networks: map[string]*networkv1.Network{}, services: map[string]*networkv1.Service{}, backends: map[string]map[string]*networkv1.Backend{}}
		changed := newEmpty()
		for range rapid.IntRange(1, 30).Draw(t, "changes") {
			changed.Apply(m.change(t))
		}
		complete := newEmpty()
		complete.Apply(m.complete())
		if diff := cmp.Diff(answers(complete), answers(changed)); diff != "" {
			t.Fatalf("answers after changes (-complete +changed):\n%s", diff)
		}
	})
}
