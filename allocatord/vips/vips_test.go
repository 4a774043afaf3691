package vips_test

import (
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/musterhq/muster/allocatord/vips"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/addresses"
)

func layout(t interface{ Fatal(args ...any) }) *addresses.Layout {
	l, err := addresses.Divide([]addresses.Subnet{
		{Prefix: netip.MustParsePrefix("10.1.0.0/27")}, {Prefix: netip.MustParsePrefix("fd00::/64")},
	}, []netip.Addr{netip.MustParseAddr("10.1.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestServicesKeepTheirAddressAndShareNone(t *testing.T) {
	l := layout(t)
	const most = 6 // of 8: the network address and the reserved one are never given
	rapid.Check(t, func(t *rapid.T) {
		p := vips.New("net", l, 0)
		has := map[string][]*musterv1.VirtualIP{}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			service := rapid.StringMatching("[a-i]").Draw(t, "service")
			switch rapid.IntRange(0, 2).Draw(t, "step") {
			case 0:
				got, ok := p.Give(service)
				old, had := has[service]
				if ok != (had || len(has) < most) {
					t.Fatalf("with %d services that have one, give returns %t", len(has), ok)
				}
				if !ok {
					continue
				}
				if len(got) != 2 || had && (!proto.Equal(got[0], old[0]) || !proto.Equal(got[1], old[1])) {
					t.Fatalf("service has %v, had %v", got, old)
				}
				has[service] = got
			case 1:
				p.Free(service)
				delete(has, service)
			case 2: // another replica takes over
				again := vips.New("net", l, p.Next())
				for s, of := range has {
					if !again.Restore(s, of) || again.Restore(s+"x", of) {
						t.Fatalf("%v of %s is not restored, or restored for another", of, s)
					}
				}
				p = again
			}
			holder := map[string]string{}
			for s, of := range has {
				for _, v := range of {
					if other, taken := holder[v.Address]; taken {
						t.Fatalf("%s and %s have %s", s, other, v.Address)
					}
					holder[v.Address] = s
				}
			}
			if p.Held() != len(has) {
				t.Fatalf("%d services have one, want %d", p.Held(), len(has))
			}
		}
	})
}

func TestAddressesAreWrittenWithTheSubnetsPrefix(t *testing.T) {
	got, ok := vips.New("net", layout(t), 0).Give("web")
	if !ok || len(got) != 2 || got[0].Address != "10.1.0.2/27" || got[1].Address != "fd00::2/64" {
		t.Errorf("got %v", got)
	}
}

func TestRestoreRefusesAddressesOfOthers(t *testing.T) {
	p := vips.New("net", layout(t), 0)
	for _, of := range [][]*musterv1.VirtualIP{
		nil,
		{{NetworkId: "other", Address: "10.1.0.2/27"}},
		{{NetworkId: "net", Address: "10.1.0.2/27"}},
		{{NetworkId: "net", Address: "10.1.0.2/27"}, {NetworkId: "net", Address: "fd00::3/64"}},
		{{NetworkId: "net", Address: "10.1.0.9/27"}, {NetworkId: "net", Address: "fd00::9/64"}},
		{{NetworkId: "net", Address: "x"}},
	} {
		if p.Restore("web", of) {
			t.Errorf("%v is restored", of)
		}
	}
}
