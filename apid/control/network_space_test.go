package control_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/store"
)

// settings writes the cluster's settings for networks.
func (f *fixture) settings(n *musterv1.NetworkConfig) {
	f.t.Helper()
	got, err := f.GetCluster(f.t.Context(), &musterv1.GetClusterRequest{})
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.UpdateCluster(f.t.Context(), &musterv1.UpdateClusterRequest{
		Version: got.Cluster.Meta.GetVersion(), Spec: &musterv1.ClusterSpec{Network: n},
	}); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) tryNetwork(spec *musterv1.NetworkSpec) error {
	_, err := f.CreateNetwork(f.t.Context(), &musterv1.CreateNetworkRequest{Spec: spec})
	return err
}

func TestNumberOfNetworksIsLimited(t *testing.T) {
	t.Parallel()
	subtest(t, "setting", func(t *testing.T) {
		a := start(t)
		a.settings(&musterv1.NetworkConfig{MaxNetworks: proto.Uint32(2)})
		a.createNetwork(&musterv1.NetworkSpec{Name: "a"})
		a.createNetwork(&musterv1.NetworkSpec{Name: "b"})
		// The ingress network is created when a service needs it.
		a.create(publishing("web", "8080"))
		err := a.tryNetwork(&musterv1.NetworkSpec{Name: "c"})
		wantCode(t, err, codes.ResourceExhausted)
		for _, want := range []string{"has 2 networks", "muster network prune", "--max-networks"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error %v does not contain %q", err, want)
			}
		}
		if err := a.removeNetwork("a"); err != nil {
			t.Fatal(err)
		}
		a.createNetwork(&musterv1.NetworkSpec{Name: "c"})
	})
	subtest(t, "default", func(t *testing.T) {
		a := start(t)
		a.update(func(tx *store.Tx) {
			for i := range 1000 {
				a.Tables.Networks.Put(tx, fmt.Sprint("n", i), &recordv1.Network{Spec: &musterv1.NetworkSpec{
					Name: fmt.Sprint("n", i), Ipam: &musterv1.IPAMOptions{Configs: []*musterv1.IPAMConfig{{Subnet: "11.0.0.0/24"}}},
				}})
			}
		})
		wantCode(t, a.tryNetwork(networkSpec(t, `{"name":"a","ipam":{"configs":[{"subnet":"11.0.0.0/24"}]}}`)), codes.ResourceExhausted)
	})
}

func TestSubnetThatCoversMostOfThePoolIsRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pools   []*musterv1.AddressPool
		subnet  string
		refused bool
	}{
		"all of it":          {nil, "10.0.0.0/8", true},
		"the pool":           {nil, "10.64.0.0/10", true},
		"half of it":         {nil, "10.64.0.0/11", false},
		"one of its subnets": {nil, "10.64.0.0/16", false},
		"a part of one":      {nil, "10.64.7.0/24", false},
		"elsewhere":          {nil, "11.0.0.0/8", false},
		"IPv6":               {nil, "fd6d:7573:7465::/48", true},
		"IPv6, half of it":   {nil, "fd6d:7573:7465:8000::/49", false},
		"one of two pools":   {[]*musterv1.AddressPool{{Base: "172.20.0.0/16", Size: 24}, {Base: "172.30.0.0/16", Size: 24}}, "172.20.0.0/16", false},
		"the greater pool":   {[]*musterv1.AddressPool{{Base: "172.20.0.0/16", Size: 24}, {Base: "172.30.0.0/16", Size: 20}}, "172.20.0.0/16", true},
	} {
		subtest(t, name, func(t *testing.T) {
			a := start(t)
			a.settings(&musterv1.NetworkConfig{AddressPools: c.pools})
			err := a.tryNetwork(&musterv1.NetworkSpec{
				Name: "a", Ipv6Enabled: strings.Contains(c.subnet, ":"), Ipam: &musterv1.IPAMOptions{Configs: []*musterv1.IPAMConfig{{Subnet: c.subnet}}},
			})
			if !c.refused {
				wantCode(t, err, codes.OK)
				return
			}
			wantCode(t, err, codes.InvalidArgument, "spec.ipam.configs")
			if !strings.Contains(err.Error(), "--default-addr-pool") {
				t.Errorf("error %v does not say what to do", err)
			}
		})
	}
}

func TestNetworkIsRefusedWhenThePoolIsUsedUp(t *testing.T) {
	t.Parallel()
	spec := func(name, subnet string) *musterv1.NetworkSpec {
		s := &musterv1.NetworkSpec{Name: name}
		if subnet != "" {
			s.Ipam = &musterv1.IPAMOptions{Configs: []*musterv1.IPAMConfig{{Subnet: subnet}}}
		}
		return s
	}
	for name, c := range map[string]struct {
		// others are the subnets of networks that exist; "" is one that waits for its
		// subnet, and "+" before a subnet says that it was chosen.
		others  []string
		refused bool
	}{
		"empty":                     {nil, false},
		"three of four":             {[]string{"", "", ""}, false},
		"all":                       {[]string{"", "", "", ""}, true},
		"chosen":                    {[]string{"+10.9.0.0/24", "+10.9.1.0/24", "10.9.2.128/25", ""}, true},
		"parts of one":              {[]string{"10.9.0.0/26", "10.9.0.64/26", "10.9.0.64/26", "10.9.0.128/25"}, false},
		"a greater one":             {[]string{"10.9.0.0/23", "10.9.0.0/24", "", ""}, true},
		"overlapping greater ones":  {[]string{"10.9.0.0/23", "10.9.0.0/24", "10.9.1.0/24", ""}, false},
		"subnets outside the pool":  {[]string{"10.8.0.0/16", "10.10.0.0/16", "11.0.0.0/8", ""}, false},
		"one that holds the pool":   {[]string{"+10.0.0.0/8"}, true},
		"subnets of another family": {[]string{"+11.0.0.0/24 fd00::/64", "+11.0.1.0/24 fd01::/64", "+11.0.2.0/24 fd02::/64", "+11.0.3.0/24 fd03::/64"}, false},
	} {
		subtest(t, name, func(t *testing.T) {
			a := start(t)
			a.update(func(tx *store.Tx) {
				for i, subnet := range c.others {
					id := fmt.Sprint("n", i)
					chosen, ok := strings.CutPrefix(subnet, "+")
					if ok {
						a.Tables.NetworkStates.Put(tx, id, &recordv1.NetworkState{Subnets: strings.Split(chosen, " ")})
						subnet = ""
					}
					a.Tables.Networks.Put(tx, id, &recordv1.Network{Spec: spec(id, subnet)})
				}
			})
			a.settings(&musterv1.NetworkConfig{AddressPools: []*musterv1.AddressPool{{Base: "10.9.0.0/22", Size: 24}}})
			err := a.tryNetwork(spec("a", ""))
			if !c.refused {
				wantCode(t, err, codes.OK)
				return
			}
			wantCode(t, err, codes.FailedPrecondition, "spec.ipam.configs")
			if !strings.Contains(err.Error(), "10.9.0.0/22") {
				t.Errorf("error %v does not name the pool", err)
			}
			a.createNetwork(spec("b", "11.0.0.0/16"))
			a.createNetwork(networkSpec(t, `{"name":"c","ipam":{"configs":[{"subnet":"10.9.1.0/24"}]}}`))
		})
	}
}
