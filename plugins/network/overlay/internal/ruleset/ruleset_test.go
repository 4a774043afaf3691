//go:build linux

package ruleset_test

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
	"github.com/musterhq/muster/plugins/network/overlay/internal/ruleset"
)

// scratch calls a function in a namespace of its own, with a function that lists a table
// there as the program nft does.
func scratch(t *testing.T, call func(space int, list func(table string) string)) {
	t.Helper()
	if os.Getenv("CI") == "" && os.Geteuid() != 0 {
		t.Skip("this test needs root")
	}
	err := netns.Scratch(func(space *netns.Namespace) error {
		call(space.FD(), func(table string) string {
			t.Helper()
			var out []byte
			err := space.Do(func() (err error) {
				out, err = exec.Command("nft", append([]string{"-nn", "list", "table"}, strings.Fields(table)...)...).CombinedOutput()
				return err
			})
			if err != nil {
				t.Fatalf("nft: %v\n%s", err, out)
			}
			return string(out)
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func do(_ string, call func() error) error { return call() }

func addresses(texts ...string) (all []netip.Addr) {
	for _, t := range texts {
		all = append(all, netip.MustParseAddr(t))
	}
	return all
}

// chainsOf returns the rules that nft lists, by chain, without names and counters.
func chainsOf(listing string) map[string][]string {
	chains := make(map[string][]string)
	chain := ""
	for line := range strings.Lines(listing) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "chain "); ok {
			chain = strings.TrimSuffix(name, " {")
		} else if line == "}" {
			chain = ""
		} else if chain != "" && line != "" {
			line, _, _ = strings.Cut(line, " comment ")
			chains[chain] = append(chains[chain], strings.ReplaceAll(line, "counter packets 0 bytes 0", "counter"))
		}
	}
	return chains
}

// TestRulesAsNftListsThem compares what was written with what another program reads.
func TestRulesAsNftListsThem(t *testing.T) {
	scratch(t, func(space int, list func(string) string) {
		table := ruleset.New(ruleset.Sandbox(false, false), space, do)
		backends := addresses("10.64.17.2", "10.64.18.2")
		table.Put("service", append(ruleset.Service(false, addresses("10.64.0.2"), backends),
			ruleset.Published(false, ruleset.Port{Protocol: unix.IPPROTO_TCP, Published: 8080, Target: 80}, backends)...))
		table.Put("local", ruleset.Published(false, ruleset.Port{Protocol: unix.IPPROTO_UDP, Published: 5353, Target: 53, KeepSource: true}, backends[:1]))
		table.Put("node", ruleset.Node(false, addresses("10.64.17.1")))
		table.Put("task", ruleset.Self(false, backends[:1], addresses("10.64.17.1")))
		if err := errors.Join(table.Verify(), table.Close()); err != nil {
			t.Fatal(err)
		}
		listing := list("ip muster")
		chains := chainsOf(listing)
		for chain, want := range map[string][]string{
			"source":    {"type filter hook prerouting priority -300; policy accept;", `iifname != "lo" fib saddr . iif oif 0 counter drop`},
			"published": {"meta l4proto . th dport vmap @ports"},
			"service-2": {"dnat to ip daddr . numgen random mod 2 map @backends"},
			"snat": {
				"type nat hook postrouting priority 100; policy accept;",
				"meta mark 0x00000001 snat to meta mark map @node",
				"ct status 0x20 snat to ip saddr . ip daddr map @self",
				`iifname "t*" oifname "up0" masquerade`,
			},
		} {
			if got := strings.Join(chains[chain], "\n"); got != strings.Join(want, "\n") {
				t.Errorf("chain %s:\n%s\nwant:\n%s", chain, got, strings.Join(want, "\n"))
			}
		}
		for _, want := range []string{"10.64.0.2 : goto service-2", "6 . 8080 : goto mesh-2", "17 . 5353 : goto local-1", "10.64.17.2 . 10.64.17.2 : 10.64.17.1", "policy drop"} {
			if !strings.Contains(listing, want) {
				t.Errorf("%q is not in:\n%s", want, listing)
			}
		}
	})
}

// TestServiceChangesAreWhole changes a service whose backends do not fit one transaction,
// and checks that the number of elements is right whatever came before.
func TestServiceChangesAreWhole(t *testing.T) {
	scratch(t, func(space int, list func(string) string) {
		table := ruleset.New(ruleset.Sandbox(false, false), space, do)
		for _, count := range []int{3, 2500, 1, 0, 7} {
			var backends []netip.Addr
			for i := range count {
				backends = append(backends, netip.AddrFrom4([4]byte{10, 64, byte(64 + i>>8), byte(i)}))
			}
			table.Put("service", ruleset.Service(false, addresses("10.64.0.2"), backends))
			if err := table.Commit(); err != nil {
				t.Fatal(err)
			}
			listing := list("ip muster")
			if got := strings.Count(listing, "10.64.0.2 . 0x"); got != count {
				t.Errorf("%d backends are listed, want %d", got, count)
			}
			if got, want := strings.Contains(listing, "goto service-"), count > 0; got != want {
				t.Errorf("with %d backends the address leads somewhere: %t", count, got)
			}
			// Chains that nothing leads to are gone.
			if got, want := strings.Count(listing, "chain service-"), min(count, 1); got != want {
				t.Errorf("%d chains for services, want %d", got, want)
			}
		}
		if err := table.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestChainsStayWhileServicesUseThem removes two services that share a chain, also after
// another process has adopted the table.
func TestChainsStayWhileServicesUseThem(t *testing.T) {
	scratch(t, func(space int, list func(string) string) {
		table := ruleset.New(ruleset.Sandbox(false, false), space, do)
		put := func(name, virtual string, backends ...string) {
			t.Helper()
			table.Put(name, ruleset.Service(false, addresses(virtual), addresses(backends...)))
			if err := table.Commit(); err != nil {
				t.Fatal(err)
			}
		}
		check := func(when string, want int) {
			t.Helper()
			if got := strings.Count(list("ip muster"), "chain service-"); got != want {
				t.Errorf("%d chains for services %s, want %d", got, when, want)
			}
		}
		put("first", "10.64.0.2", "10.64.17.2", "10.64.17.3")
		put("second", "10.64.0.3", "10.64.17.4", "10.64.17.5")
		check("of two backends each", 1)
		put("first", "10.64.0.2")
		check("while the second is there", 1)
		if err := table.Close(); err != nil {
			t.Fatal(err)
		}
		table = ruleset.New(ruleset.Sandbox(false, false), space, do)
		table.Put("first", ruleset.Service(false, addresses("10.64.0.2"), addresses("10.64.17.2", "10.64.17.3")))
		put("second", "10.64.0.3", "10.64.17.4", "10.64.17.5")
		check("of two backends each, adopted", 1)
		put("second", "10.64.0.3")
		check("while the first is there", 1)
		put("first", "10.64.0.2")
		check("after the last", 0)
		if err := table.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestFirstOwnerKeepsKey lets two services have one address.
func TestFirstOwnerKeepsKey(t *testing.T) {
	scratch(t, func(space int, list func(string) string) {
		table := ruleset.New(ruleset.Sandbox(false, false), space, do)
		commit := func() {
			t.Helper()
			if err := table.Commit(); err != nil {
				t.Fatal(err)
			}
		}
		table.Put("first", ruleset.Service(false, addresses("10.64.0.2"), addresses("10.64.17.2")))
		commit()
		table.Put("second", ruleset.Service(false, addresses("10.64.0.2"), addresses("10.64.17.3")))
		commit()
		var conflict *ruleset.ConflictError
		if !errors.As(table.Conflict("second"), &conflict) || conflict.Other != "first" || table.Conflict("first") != nil {
			t.Errorf("conflicts: %v, %v", table.Conflict("first"), table.Conflict("second"))
		}
		table.Put("first", nil)
		commit()
		if table.Conflict("second") != nil || !strings.Contains(list("ip muster"), "10.64.17.3") {
			t.Errorf("after the first is gone: %v\n%s", table.Conflict("second"), list("ip muster"))
		}
		if err := table.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
