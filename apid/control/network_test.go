package control_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/apidtest"
	"github.com/musterhq/muster/internal/addresses"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

func (f *fixture) createNetwork(spec *musterv1.NetworkSpec) *musterv1.Network {
	f.t.Helper()
	return apidtest.Must(f.CreateNetwork(f.t.Context(), &musterv1.CreateNetworkRequest{Spec: spec}))(f.t).Network
}

func (f *fixture) getNetwork(ref string) *musterv1.Network {
	f.t.Helper()
	return apidtest.Must(f.GetNetwork(f.t.Context(), &musterv1.GetNetworkRequest{Network: ref}))(f.t).Network
}

// networkSpec parses a spec.
func networkSpec(t *testing.T, text string) *musterv1.NetworkSpec {
	t.Helper()
	spec := &musterv1.NetworkSpec{}
	if err := protojson.Unmarshal([]byte(text), spec); err != nil {
		t.Fatal(err)
	}
	return spec
}

// pluginNode writes a node whose executor has capabilities, and whose network plugin has
// drivers.
func (f *fixture) pluginNode(id string, capabilities, drivers []string) {
	f.update(func(tx *store.Tx) {
		f.Tables.NodeStates.Put(tx, id, &recordv1.NodeState{State: musterv1.NodeStatus_READY, Description: &musterv1.NodeDescription{
			Hostname: id,
			Executors: []*musterv1.ExecutorDescription{{
				Name: "docker", Kinds: []string{"container"}, Health: musterv1.ExecutorDescription_HEALTHY, Capabilities: capabilities,
			}},
			NetworkDrivers: []*musterv1.NetworkDriverDescription{{Name: "net", Health: musterv1.ExecutorDescription_HEALTHY, Drivers: drivers}},
		}})
	})
}

// describedNode writes a node with a network plugin.
func (f *fixture) describedNode(id string, plugin *musterv1.NetworkDriverDescription) {
	f.update(func(tx *store.Tx) {
		f.Tables.NodeStates.Put(tx, id, &recordv1.NodeState{State: musterv1.NodeStatus_READY, Description: &musterv1.NodeDescription{
			Hostname: id, NetworkDrivers: []*musterv1.NetworkDriverDescription{plugin},
		}})
	})
}

func TestNetworkSpecIsChecked(t *testing.T) {
	t.Parallel()
	const invalid, gap, waiting = codes.InvalidArgument, codes.Unimplemented, codes.FailedPrecondition
	ipam := func(configs string) string { return `{"name":"a","ipam":{"configs":[` + configs + `]}}` }
	at := func(field string) []string { return []string{"spec.ipam.configs[0]." + field} }
	for name, c := range map[string]struct {
		spec   string
		code   codes.Code
		fields []string
	}{
		"nothing but a name": {`{"name":"a"}`, codes.OK, nil},
		"all that is set": {`{"name":"a_B-9","labels":{"team":"web"},"driver":{"name":"overlay"},"ipv6Enabled":true,"internal":true,"mtu":1400,
			"ipam":{"configs":[{"subnet":"10.1.0.0/16","range":"10.1.4.0/22","gateway":"10.1.0.1","reserved":{"router":"10.1.0.2"}},{"subnet":"fd00:1::/64"}]}}`, codes.OK, nil},
		"bridge":            {`{"name":"a","driver":{"name":"bridge"}}`, codes.OK, nil},
		"smallest subnets":  {`{"name":"a","ipv6Enabled":true,"ipam":{"configs":[{"subnet":"10.0.0.8/29"},{"subnet":"fd00::8/125"}]}}`, codes.OK, nil},
		"greatest subnets":  {`{"name":"a","ipv6Enabled":true,"ipam":{"configs":[{"subnet":"11.0.0.0/8"},{"subnet":"fd00::/32"}]}}`, codes.OK, nil},
		"overlaps with one": {ipam(`{"subnet":"10.9.0.0/17"}`), codes.OK, nil},

		"no name":          {`{}`, invalid, []string{"spec.name"}},
		"dot in the name":  {`{"name":"a.b"}`, invalid, []string{"spec.name"}},
		"host":             {`{"name":"Host"}`, invalid, []string{"spec.name"}},
		"none":             {`{"name":"none"}`, invalid, []string{"spec.name"}},
		"bridge as a name": {`{"name":"bridge"}`, invalid, []string{"spec.name"}},
		"default":          {`{"name":"default"}`, invalid, []string{"spec.name"}},
		"ingress by name":  {`{"name":"Ingress"}`, invalid, []string{"spec.name"}},
		"name is taken":    {`{"name":"TAKEN"}`, codes.AlreadyExists, nil},
		"label":            {`{"name":"a","labels":{"":"x"}}`, invalid, []string{"spec.labels"}},

		"driver":            {`{"name":"a","driver":{"name":"macvlan"}}`, invalid, []string{"spec.driver.name"}},
		"option":            {`{"name":"a","driver":{"options":{"vxlan":"7"}}}`, invalid, []string{`spec.driver.options["vxlan"]`}},
		"option of cni":     {`{"name":"a","driver":{"name":"cni","options":{"config":"lan","x":"y"}}}`, invalid, []string{`spec.driver.options["x"]`}},
		"driver host":       {`{"name":"a","driver":{"name":"host"}}`, invalid, []string{"spec.driver.name"}},
		"cni without it":    {`{"name":"a","driver":{"name":"cni"}}`, waiting, []string{"spec.driver.name"}},
		"cni with settings": {`{"name":"a","driver":{"name":"cni"},"mtu":1400,"internal":true,"ipv6Enabled":true,"ipam":{"configs":[{"subnet":"10.1.0.0/16"}]}}`, invalid, []string{"spec.mtu", "spec.internal", "spec.ipv6Enabled", "spec.ipam.configs"}},

		"encrypted, no node can": {`{"name":"a","encrypted":true}`, waiting, []string{"spec.encrypted"}},
		"encrypted, bridge":      {`{"name":"a","encrypted":true,"driver":{"name":"bridge"}}`, invalid, []string{"spec.encrypted"}},
		"encrypted, cni":         {`{"name":"a","encrypted":true,"driver":{"name":"cni"}}`, invalid, []string{"spec.encrypted"}},

		"attachable":        {`{"name":"a","attachable":true}`, codes.OK, nil},
		"config from":       {`{"name":"a","configFrom":"b"}`, gap, []string{"spec.configFrom"}},
		"ipam driver":       {`{"name":"a","ipam":{"driver":{"name":"x"}}}`, gap, []string{"spec.ipam.driver"}},
		"mtu too small":     {`{"name":"a","mtu":575}`, invalid, []string{"spec.mtu"}},
		"mtu too great":     {`{"name":"a","mtu":65536}`, invalid, []string{"spec.mtu"}},
		"mtu for IPv6":      {`{"name":"a","mtu":1279,"ipv6Enabled":true}`, invalid, []string{"spec.mtu"}},
		"ingress, internal": {`{"name":"a","ingress":true,"internal":true,"attachable":true}`, invalid, []string{"spec.internal", "spec.attachable"}},
		"ingress, bridge":   {`{"name":"a","ingress":true,"driver":{"name":"bridge"}}`, invalid, []string{"spec.driver.name"}},
		"ingress overlaps":  {`{"name":"a","ingress":true,"ipam":{"configs":[{"subnet":"10.9.128.0/24"}]}}`, invalid, []string{"spec.ipam.configs"}},
		"ingress, allocated overlap": {`{"name":"a","ingress":true,"ipam":{"configs":[{"subnet":"10.64.0.0/12"}]}}`, invalid,
			[]string{"spec.ipam.configs"}},

		"no subnet":             {ipam(`{"gateway":"10.0.0.1"}`), invalid, at("subnet")},
		"no CIDR":               {ipam(`{"subnet":"10.0.0.0"}`), invalid, at("subnet")},
		"host bits":             {ipam(`{"subnet":"10.0.0.1/16"}`), invalid, at("subnet")},
		"IPv4 in IPv6":          {ipam(`{"subnet":"::ffff:10.0.0.0/112"}`), invalid, at("subnet")},
		"too small":             {ipam(`{"subnet":"10.0.0.0/30"}`), invalid, at("subnet")},
		"too great":             {ipam(`{"subnet":"32.0.0.0/7"}`), invalid, at("subnet")},
		"too small for IPv6":    {ipam(`{"subnet":"fd00::/126"}`), invalid, at("subnet")},
		"loopback":              {ipam(`{"subnet":"127.0.0.0/16"}`), invalid, at("subnet")},
		"link-local":            {ipam(`{"subnet":"169.254.1.0/24"}`), invalid, at("subnet")},
		"multicast":             {ipam(`{"subnet":"224.0.0.0/8"}`), invalid, at("subnet")},
		"IPv6 without it":       {ipam(`{"subnet":"fd00::/64"}`), invalid, at("subnet")},
		"two of IPv4":           {ipam(`{"subnet":"10.0.0.0/16"},{"subnet":"10.1.0.0/16"}`), invalid, []string{"spec.ipam.configs[1].subnet"}},
		"range elsewhere":       {ipam(`{"subnet":"10.0.0.0/16","range":"10.1.0.0/24"}`), invalid, at("range")},
		"range is greater":      {ipam(`{"subnet":"10.0.0.0/16","range":"10.0.0.0/15"}`), invalid, at("range")},
		"range is no CIDR":      {ipam(`{"subnet":"10.0.0.0/16","range":"x"}`), invalid, at("range")},
		"range is too small":    {ipam(`{"subnet":"10.0.0.0/16","range":"10.0.0.0/30"}`), invalid, at("range")},
		"gateway elsewhere":     {ipam(`{"subnet":"10.0.0.0/16","gateway":"10.1.0.1"}`), invalid, at("gateway")},
		"gateway is no address": {ipam(`{"subnet":"10.0.0.0/16","gateway":"10.0.0.1/16"}`), invalid, at("gateway")},
		"reserved elsewhere":    {ipam(`{"subnet":"10.0.0.0/16","reserved":{"a":"10.0.0.1","b":"11.0.0.1"}}`), invalid, []string{`spec.ipam.configs[0].reserved["b"]`}},
	} {
		subtest(t, name, func(t *testing.T) {
			a := start(t)
			taken := a.createNetwork(networkSpec(t, `{"name":"taken","ipam":{"configs":[{"subnet":"10.9.0.0/16"}]}}`))
			auto := a.createNetwork(&musterv1.NetworkSpec{Name: "auto"})
			a.update(func(tx *store.Tx) {
				a.Tables.NetworkStates.Put(tx, taken.Id, &recordv1.NetworkState{Subnets: []string{"10.9.0.0/16"}})
				a.Tables.NetworkStates.Put(tx, auto.Id, &recordv1.NetworkState{Subnets: []string{"10.65.0.0/16"}})
			})
			_, err := a.CreateNetwork(t.Context(), &musterv1.CreateNetworkRequest{Spec: networkSpec(t, c.spec)})
			wantCode(t, err, c.code, c.fields...)
		})
	}
	subtest(t, "no spec", func(t *testing.T) {
		_, err := start(t).CreateNetwork(t.Context(), &musterv1.CreateNetworkRequest{})
		wantCode(t, err, invalid, "spec")
	})
	subtest(t, "encrypted where no node can says why", func(t *testing.T) {
		a := start(t)
		a.describedNode("n1", &musterv1.NetworkDriverDescription{Drivers: []string{"overlay"}, Missing: []string{"sctp: no kernel module", "encrypted: /dev/net/tun is not there"}})
		// That of another driver does not count.
		a.describedNode("n2", &musterv1.NetworkDriverDescription{Drivers: []string{"cni"}, Capabilities: []string{"encrypted"}})
		_, err := a.CreateNetwork(t.Context(), &musterv1.CreateNetworkRequest{Spec: networkSpec(t, `{"name":"a","encrypted":true}`)})
		wantCode(t, err, waiting, "spec.encrypted")
		if !strings.Contains(fmt.Sprint(status.Convert(err).Details()), "/dev/net/tun is not there") {
			t.Errorf("the reason is not named: %v", status.Convert(err).Details())
		}
	})
	subtest(t, "encrypted where a node can", func(t *testing.T) {
		a := start(t)
		a.describedNode("n1", &musterv1.NetworkDriverDescription{Drivers: []string{"overlay"}, Missing: []string{"encrypted: no"}})
		a.describedNode("n2", &musterv1.NetworkDriverDescription{Drivers: []string{"overlay"}, Capabilities: []string{"encrypted"}})
		if n := a.createNetwork(networkSpec(t, `{"name":"a","encrypted":true}`)); !n.GetSpec().GetEncrypted() {
			t.Errorf("created: %v", n)
		}
	})
	subtest(t, "cni where a node has it", func(t *testing.T) {
		a := start(t)
		a.pluginNode("n1", nil, []string{"cni"})
		a.createNetwork(networkSpec(t, `{"name":"a","driver":{"name":"cni","options":{"config":"lan"}}}`))
	})
}

func TestSecondIngressNetworkIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := start(t)
		spec := func(name string) *musterv1.CreateNetworkRequest {
			return &musterv1.CreateNetworkRequest{Spec: &musterv1.NetworkSpec{Name: name, Ingress: true}}
		}
		if _, err := a.CreateNetwork(t.Context(), spec("mesh")); err != nil {
			t.Fatal(err)
		}
		_, err := a.CreateNetwork(t.Context(), spec("ingress"))
		wantCode(t, err, codes.AlreadyExists)
		if !strings.Contains(err.Error(), `"mesh"`) {
			t.Errorf("error %q does not name the network", err)
		}
		if _, err := a.RemoveNetwork(t.Context(), &musterv1.RemoveNetworkRequest{Network: "mesh"}); err != nil {
			t.Fatal(err)
		}
		if _, err := a.CreateNetwork(t.Context(), spec("ingress")); err != nil {
			t.Errorf("create after the removal: %v", err)
		}
	})
}

// TestNetworkCountsUsableBlocks has a network whose gateway and broadcast address are
// blocks of their own.
func TestNetworkCountsUsableBlocks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := start(t)
		created := a.createNetwork(networkSpec(t, `{"name":"small","ipam":{"configs":[{"subnet":"10.1.0.0/28","gateway":"10.1.0.9"}]}}`))
		layout, err := addresses.Divide([]addresses.Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/28")}}, []netip.Addr{netip.MustParseAddr("10.1.0.9")})
		if err != nil {
			t.Fatal(err)
		}
		a.update(func(tx *store.Tx) { a.Tables.NetworkStates.Put(tx, created.Id, layout.State()) })
		if got := a.getNetwork("small").Status.TotalBlocks; got != 10 {
			t.Errorf("%d blocks of 12 can be used, want 10", got)
		}
	})
}

func TestNetworkShowsWhatItWasGiven(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := start(t)
		created := a.createNetwork(networkSpec(t, `{"name":"back","ipv6Enabled":true,"ipam":{"configs":[{"subnet":"10.1.0.0/16","gateway":"10.1.0.1"}]}}`))
		if created.Ipam != nil || created.Status.GetTotalBlocks() != 0 || created.Meta.GetVersion() == 0 {
			t.Errorf("created: %v", created)
		}
		a.update(func(tx *store.Tx) {
			a.Tables.NetworkStates.Put(tx, created.Id, &recordv1.NetworkState{Subnets: []string{"10.1.0.0/16", "fd00:1::/64"}, Vni: 4097, TotalBlocks: 900})
			for i, node := range []string{"n1", "n2", "n1"} {
				subnet := "10.1.64." + []string{"0", "64", "128"}[i] + "/26"
				a.Tables.Blocks.Put(tx, state.BlockKey(created.Id, uint32(i)), &recordv1.Block{NodeId: node, Subnets: []string{subnet}})
			}
			a.Tables.Blocks.Put(tx, state.BlockKey("other", 0), &recordv1.Block{NodeId: "n1"})
			a.Tables.Blocks.Delete(tx, state.BlockKey(created.Id, 2))
		})
		got := a.getNetwork("BACK")
		if got.Status.Vni != 4097 || got.Status.TotalBlocks != 900 || got.Status.LeasedBlocks != 2 {
			t.Errorf("status: %v", got.Status)
		}
		if c := got.Ipam.GetConfigs(); len(c) != 2 || c[0].Gateway != "10.1.0.1" || c[1].Subnet != "fd00:1::/64" {
			t.Errorf("ipam: %v", got.Ipam)
		}
		if b := got.Status.Blocks; len(b) != 2 || b[1].NodeId != "n2" || !slices.Equal(b[1].Subnets, []string{"10.1.64.64/26"}) {
			t.Errorf("blocks: %v", b)
		}
		list, err := a.ListNetworks(t.Context(), &musterv1.ListNetworksRequest{NamePrefixes: []string{"BA"}})
		if err != nil || len(list.Networks) != 1 || len(list.Networks[0].Status.Blocks) > 0 || list.Networks[0].Status.LeasedBlocks != 2 {
			t.Errorf("list: %v, %v", list, err)
		}
		a.update(func(tx *store.Tx) {
			a.Tables.NetworkStates.Put(tx, created.Id, &recordv1.NetworkState{Error: "the pool is used up"})
			a.Tables.Blocks.Delete(tx, state.BlockKey(created.Id, 0))
			a.Tables.Blocks.Delete(tx, state.BlockKey(created.Id, 1))
		})
		if got := a.getNetwork(created.Id[:8]); got.Status.Error != "the pool is used up" || got.Status.LeasedBlocks != 0 || got.Ipam != nil {
			t.Errorf("after the blocks have gone: %v", got)
		}
	})
}

func FuzzNetworkSpec(f *testing.F) {
	f.Add(`{"name":"a","ipv6Enabled":true,"ipam":{"configs":[{"subnet":"10.1.0.0/16","range":"10.1.4.0/22","gateway":"10.1.0.1","reserved":{"a":"10.1.0.2"}},{"subnet":"fd00:1::/64"}]}}`)
	f.Add(`{"name":"a","driver":{"name":"cni","options":{"":"x"}},"mtu":70000,"ingress":true}`)
	f.Add(`{"name":"a","ipam":{"configs":[{"subnet":"::/0"},{"subnet":"0.0.0.0/0"},{}]}}`)
	f.Fuzz(func(t *testing.T, text string) {
		spec := &musterv1.NetworkSpec{}
		if protojson.Unmarshal([]byte(text), spec) != nil {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			a := start(t)
			resp, err := a.CreateNetwork(t.Context(), &musterv1.CreateNetworkRequest{Spec: spec})
			if err != nil {
				return
			}
			// What is accepted is one subnet of each family at most, which hosts can have.
			families := map[bool]bool{}
			for _, c := range resp.Network.Spec.GetIpam().GetConfigs() {
				v6 := strings.Contains(c.Subnet, ":")
				if families[v6] || strings.HasPrefix(c.Subnet, "127.") || strings.HasSuffix(c.Subnet, "/0") {
					t.Errorf("accepted %q", text)
				}
				families[v6] = true
			}
		})
	})
}
