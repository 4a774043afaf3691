package ports_test

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/musterhq/muster/allocatord/ports"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
)

func ingress(target, published uint32, protocol musterv1.PortConfig_Protocol) *musterv1.PortConfig {
	return &musterv1.PortConfig{TargetPort: target, PublishedPort: published, Protocol: protocol, PublishMode: musterv1.PortConfig_INGRESS}
}

func numbers(of []*musterv1.PortConfig) (n []uint32) {
	for _, c := range of {
		n = append(n, c.PublishedPort)
	}
	return n
}

func TestAChosenPortIsKeptWhileTheSpecAsksForAny(t *testing.T) {
	const tcp, udp = musterv1.PortConfig_TCP, musterv1.PortConfig_UDP
	p := ports.New()
	got, _, _ := p.Set("web", []*musterv1.PortConfig{ingress(80, 0, tcp), ingress(53, 0, udp), ingress(443, 8443, 0)}, nil)
	if want := []uint32{30000, 30000, 8443}; !slices.Equal(numbers(got), want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	if other, _, _ := p.Set("other", []*musterv1.PortConfig{ingress(80, 0, tcp)}, nil); numbers(other)[0] != 30001 {
		t.Errorf("another service gets %v, want 30001", other)
	}
	// The order changes, one port is added, and one that was chosen is asked for by number.
	got, missing, _ := p.Set("web", []*musterv1.PortConfig{ingress(81, 30000, tcp), ingress(80, 0, tcp), ingress(53, 0, udp)}, got)
	if want := []uint32{30000, 30002, 30000}; !slices.Equal(numbers(got), want) || len(missing) > 0 {
		t.Fatalf("got %v and missing %v, want %v", got, missing, want)
	}
	if got, _, _ = p.Set("web", []*musterv1.PortConfig{ingress(80, 0, tcp)}, got); numbers(got)[0] != 30002 {
		t.Errorf("got %v, want 30002 as before", got)
	}
}

func TestAConflictNamesTheHolderAndEndsWithIt(t *testing.T) {
	p := ports.New()
	web := []*musterv1.PortConfig{ingress(80, 8080, 0), ingress(443, 8443, 0)}
	p.Set("old", web[:1], nil)
	got, missing, _ := p.Set("new", web, nil)
	if !slices.Equal(numbers(got), []uint32{8443}) || len(missing) != 1 || missing[0].Holder != "old" || missing[0].String() != "8080/tcp" {
		t.Errorf("got %v and missing %v", got, missing)
	}
	if _, _, freed := p.Set("old", nil, nil); !slices.Equal(freed, []string{"new"}) {
		t.Errorf("freed %v, want new", freed)
	}
	if got, missing, _ = p.Set("new", web, got); len(got) != 2 || len(missing) > 0 {
		t.Errorf("got %v and missing %v", got, missing)
	}
}

func TestTheLastDynamicPortIsGivenAndThenNone(t *testing.T) {
	p := ports.New()
	for i := range ports.LastDynamic - ports.FirstDynamic + 1 {
		if _, missing, _ := p.Set(fmt.Sprint(i), []*musterv1.PortConfig{ingress(80, 0, 0)}, nil); len(missing) > 0 {
			t.Fatalf("port %d is missing", i)
		}
	}
	if got, missing, _ := p.Set("late", []*musterv1.PortConfig{ingress(80, 0, 0)}, nil); len(got) > 0 || len(missing) != 1 || missing[0].Number != 0 {
		t.Errorf("got %v and missing %v, want none", got, missing)
	}
	if got, missing, _ := p.Set("other protocol", []*musterv1.PortConfig{ingress(80, 0, musterv1.PortConfig_UDP)}, nil); len(got) != 1 || len(missing) > 0 {
		t.Errorf("got %v and missing %v, want a UDP port", got, missing)
	}
	if _, _, freed := p.Set("7", nil, nil); !slices.Equal(freed, []string{"late"}) {
		t.Errorf("freed %v, want late", freed)
	}
}

func TestAPortHasOneHolderAndIsNotLost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := ports.New()
		specs, published := map[string][]*musterv1.PortConfig{}, map[string][]*musterv1.PortConfig{}
		set := func(service string, spec []*musterv1.PortConfig) {
			specs[service] = spec
			for todo := []string{service}; len(todo) > 0; todo = todo[1:] {
				s := todo[0]
				got, missing, freed := p.Set(s, specs[s], published[s])
				if len(got)+len(missing) != len(specs[s]) {
					t.Fatalf("%s gets %v and misses %v of %v", s, got, missing, specs[s])
				}
				for _, m := range missing {
					if m.Holder == "" || m.Holder == s {
						t.Fatalf("%s misses %v", s, m)
					}
				}
				published[s] = got
				todo = append(todo, freed...)
			}
		}
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			if rapid.IntRange(0, 4).Draw(t, "step") == 0 { // another replica takes over
				again := ports.New()
				for s, of := range published {
					again.Restore(s, of)
				}
				p = again
				for s, spec := range specs {
					before := numbers(published[s])
					set(s, spec)
					if !slices.Equal(numbers(published[s]), before) {
						t.Fatalf("%s publishes %v after a restart, before %v", s, published[s], before)
					}
				}
			}
			service := rapid.StringMatching("[a-d]").Draw(t, "service")
			var spec []*musterv1.PortConfig
			for i := range rapid.IntRange(0, 3).Draw(t, "ports") {
				c := ingress(uint32(80+i), rapid.SampledFrom([]uint32{0, 80 + 100*uint32(i), 30000 + uint32(i)}).Draw(t, "published"), 0)
				c.PublishMode = rapid.SampledFrom([]musterv1.PortConfig_PublishMode{0, 1, 2}).Draw(t, "mode")
				spec = append(spec, c)
			}
			set(service, spec)
			holder, held := map[ports.Port]string{}, 0
			for s, of := range published {
				for _, c := range of {
					port := ports.Port{Protocol: defaults.Protocol(c), Number: c.PublishedPort}
					if c.PublishMode == musterv1.PortConfig_HOST {
						continue
					}
					if other, taken := holder[port]; taken || p.Holder(port) != s || port.Number == 0 {
						t.Fatalf("%s and %q publish %v, which %q holds", s, other, port, p.Holder(port))
					}
					holder[port] = s
					held++
				}
			}
			if p.Held() != held {
				t.Fatalf("%d ports are held, want %d", p.Held(), held)
			}
		}
	})
}
