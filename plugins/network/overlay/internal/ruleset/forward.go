//go:build linux

package ruleset

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// AllowForwarding adds rules to the chains of iptables that would otherwise drop what
// goes between the host and networks, if they are there: Docker makes the policy of
// FORWARD drop, and leaves DOCKER-USER to others. Without wanted it removes the rules.
func AllowForwarding(space int, prefix string, wanted bool, change func(string, func() error) error) error {
	conn, err := nftables.New(nftables.WithNetNSFd(space))
	if err != nil {
		return fmt.Errorf("open nftables socket: %w", err)
	}
	var errs []error
	for _, f := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		errs = append(errs, allowForwarding(conn, f, prefix, wanted, change))
	}
	return errors.Join(errs...)
}

func allowForwarding(conn *nftables.Conn, f nftables.TableFamily, prefix string, wanted bool, change func(string, func() error) error) error {
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
	table := &nftables.Table{Name: "filter", Family: f}
	rules, err := conn.GetRules(table, chain)
	if err != nil {
		return fmt.Errorf("list nftables rules: %w", err)
	}
	for name, match := range map[string][]expr.Any{"from": from(prefix + "*"), "to": to(prefix + "*")} {
		mark := userdata.AppendString(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, "muster "+name+" "+prefix)
		at := slices.IndexFunc(rules, func(r *nftables.Rule) bool { return slices.Equal(r.UserData, mark) })
		switch {
		case wanted && at < 0:
			conn.InsertRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: chain.Name}, Exprs: append(match, &expr.Counter{}, accept()), UserData: mark})
			err = change("allow forwarding in "+chain.Name, conn.Flush)
		case !wanted && at >= 0:
			if err = conn.DelRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: chain.Name}, Handle: rules[at].Handle}); err == nil {
				err = change("remove rule from "+chain.Name, conn.Flush)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
