//go:build linux

package ruleset

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// AllowForwarding adds rules to the chains of iptables that would otherwise drop what
// goes between the host and networks, if they are there: Docker makes the policy of
// FORWARD drop, and leaves DOCKER-USER to others. What goes to a bridge of Docker is left to
// Docker's own rules. Bridges are links that Docker's rules would be mistaken for. Without
// wanted it removes the rules.
func AllowForwarding(space int, prefix string, bridges []string, wanted bool, change func(string, func() error) error) error {
	conn, err := nftables.New(nftables.WithNetNSFd(space))
	if err != nil {
		return fmt.Errorf("open nftables socket: %w", err)
	}
	var errs []error
	for _, f := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		errs = append(errs, allowForwarding(conn, f, prefix, bridges, wanted, change))
	}
	return errors.Join(errs...)
}

// forwardRules returns the rules for a chain in their order. All can be listed by iptables.
func forwardRules(prefix string, bridges []string, docker bool) []Rule {
	ours := prefix + "*"
	var rules []Rule
	if docker {
		for _, name := range bridges {
			rules = append(rules, rule("to "+name, from(ours), to(name), &expr.Counter{}, accept()))
		}
		for _, name := range []string{"docker*", "br-*"} {
			rules = append(rules, rule("to "+name, from(ours), to(name), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictReturn}))
		}
	}
	return append(rules, rule("from", from(ours), &expr.Counter{}, accept()), rule("to", to(ours), &expr.Counter{}, accept()))
}

func allowForwarding(conn *nftables.Conn, f nftables.TableFamily, prefix string, bridges []string, wanted bool, change func(string, func() error) error) error {
	chains, err := conn.ListChainsOfTableFamily(f)
	if err != nil {
		return fmt.Errorf("list nftables chains: %w", err)
	}
	var user, forward *nftables.Chain
	for _, c := range chains {
		switch {
		case c.Table.Name != "filter":
		case c.Name == "DOCKER-USER":
			user = c
		case c.Name == "FORWARD" && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop:
			forward = c
		}
	}
	chain := forward
	if user != nil {
		chain = user
	}
	if chain == nil {
		return nil
	}
	table, at := &nftables.Table{Name: "filter", Family: f}, &nftables.Chain{Name: chain.Name}
	present, err := conn.GetRules(table, chain)
	if err != nil {
		return fmt.Errorf("list nftables rules: %w", err)
	}
	var want []Rule
	if wanted {
		want = forwardRules(prefix, bridges, user != nil)
	}
	marks := make([][]byte, len(want))
	for i, r := range want {
		marks[i] = userdata.AppendString(nil, userdata.TypeComment, "muster "+r.Name+" "+prefix)
	}
	var ours []*nftables.Rule
	for _, r := range present {
		comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		if strings.HasPrefix(comment, "muster ") && strings.HasSuffix(comment, " "+prefix) {
			ours = append(ours, r)
		}
	}
	if slices.EqualFunc(ours, marks, func(r *nftables.Rule, mark []byte) bool { return slices.Equal(r.UserData, mark) }) {
		return nil
	}
	for _, r := range ours {
		if err := conn.DelRule(&nftables.Rule{Table: table, Chain: at, Handle: r.Handle}); err != nil {
			return err
		}
	}
	for i, r := range slices.Backward(want) {
		conn.InsertRule(&nftables.Rule{Table: table, Chain: at, Exprs: r.Exprs, UserData: marks[i]})
	}
	return change("allow forwarding in "+chain.Name, conn.Flush)
}
