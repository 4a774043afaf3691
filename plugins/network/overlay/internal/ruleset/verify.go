//go:build linux

package ruleset

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// attempts is how often Verify reads the table again after it has changed it.
const attempts = 3

// ErrUnsettled says that the table differs again and again from what was written.
var ErrUnsettled = errors.New("the table in the kernel still differs from what was written: another program may be changing it")

// Verify reads the whole table from the kernel and changes what differs from what must be
// there.
func (t *Table) Verify() error {
	for range attempts {
		conn, err := t.connect()
		if err != nil {
			return err
		}
		before := t.present.at
		same, err := t.sameRules(conn)
		if err != nil {
			return errors.Join(err, t.Close())
		}
		if !same {
			if err := t.rebuild(conn); err != nil {
				return err
			}
		} else if err := t.read(conn); err != nil {
			return errors.Join(err, t.Close())
		}
		want := t.wanted(before)
		// What was read has no owner yet.
		for at, h := range t.present.at {
			if w, ok := want[at]; ok && w.value == h.value && w != h {
				t.present.set(at, w)
			}
		}
		operations := difference(t.present.at, want)
		if err := t.apply(operations); err != nil {
			return err
		}
		t.known = true
		t.changed = make(map[string]bool)
		if same && len(operations) == 0 {
			return nil
		}
		// The kernel may have dropped part of a large change without saying so: read it
		// back.
	}
	return ErrUnsettled
}

// wanted returns the elements that must be there, and notes conflicts. Of several owners that
// want one key the one that has it keeps it.
func (t *Table) wanted(before map[place]content) map[place]content {
	has := func(at place, e Element, owner string) bool {
		if b, known := before[at]; known && b.owner != "" {
			return b.owner == owner
		}
		h, there := t.present.at[at]
		return there && h.value == e.Value
	}
	want := make(map[place]content)
	t.conflicts = make(map[string]error)
	owners := t.Owners()
	for _, holders := range []bool{true, false} {
		for _, owner := range owners {
			for _, e := range t.owned[owner] {
				at := place{e.Set, e.Key}
				if has(at, e, owner) != holders {
					continue
				}
				if other, taken := want[at]; taken && other.owner != owner {
					t.conflicts[owner] = &ConflictError{Set: e.Set, Owner: owner, Other: other.owner}
					continue
				}
				want[at] = content{e.Value, owner}
			}
		}
	}
	return want
}

// sameRules reports whether the table is there with the rules of the layout.
func (t *Table) sameRules(conn *nftables.Conn) (bool, error) {
	there, err := t.exists(conn)
	if err != nil || !there {
		return false, err
	}
	chains, err := conn.ListChainsOfTableFamily(t.layout.Family)
	if err != nil {
		return false, fmt.Errorf("list nftables chains: %w", err)
	}
	have := make(map[string]*nftables.Chain)
	for _, c := range chains {
		if c.Table.Name == t.layout.Name {
			have[c.Name] = c
		}
	}
	for _, c := range t.layout.Chains {
		k, ok := have[c.Name]
		if !ok || !sameHook(k, c) {
			return false, nil
		}
		if same, err := t.sameChain(conn, c); err != nil || !same {
			return false, err
		}
		delete(have, c.Name)
	}
	sets, err := conn.GetSets(t.table)
	if err != nil {
		return false, fmt.Errorf("list nftables sets: %w", err)
	}
	named := make(map[string]bool)
	for _, s := range sets {
		named[s.Name] = true
	}
	for _, s := range t.layout.Sets {
		if !named[s.Name] {
			return false, nil
		}
	}
	t.chains = make(map[string]bool)
	for name := range have {
		if same, err := t.sameChain(conn, Chain{Name: name, Rules: t.layout.Dynamic(name)}); err != nil || !same {
			return false, err
		}
		t.chains[name] = true
	}
	return true, nil
}

func sameHook(have *nftables.Chain, want Chain) bool {
	if want.Hook == nil || have.Hooknum == nil {
		return want.Hook == nil && have.Hooknum == nil
	}
	return *have.Hooknum == *want.Hook && have.Priority != nil && *have.Priority == want.Priority && have.Type == want.Type &&
		have.Policy != nil && (*have.Policy == nftables.ChainPolicyDrop) == want.Drop
}

func (t *Table) sameChain(conn *nftables.Conn, c Chain) (bool, error) {
	rules, err := conn.GetRules(t.table, &nftables.Chain{Name: c.Name})
	if err != nil {
		return false, fmt.Errorf("list nftables rules: %w", err)
	}
	if len(rules) != len(c.Rules) {
		return false, nil
	}
	for i, r := range c.Rules {
		if !bytes.Equal(rules[i].UserData, t.mark(r)) {
			return false, nil
		}
	}
	return true, nil
}

// rebuild replaces the table with one that has the fixed part only.
func (t *Table) rebuild(conn *nftables.Conn) error {
	conn.AddTable(t.table)
	conn.DelTable(t.table)
	conn.AddTable(t.table)
	for _, s := range t.layout.Sets {
		if err := conn.AddSet(t.sets[s.Name], nil); err != nil {
			return err
		}
	}
	for _, c := range t.layout.Chains {
		t.declareChain(c)
	}
	for _, c := range t.layout.Chains {
		t.addRules(c)
	}
	t.present, t.chains = newElements(t.verdicts), make(map[string]bool)
	return t.flush("create table " + t.layout.Name)
}

// read reads all elements.
func (t *Table) read(conn *nftables.Conn) error {
	t.present = newElements(t.verdicts)
	for name, s := range t.sets {
		elements, err := conn.GetSetElements(s)
		if err != nil {
			return fmt.Errorf("list elements of %s: %w", name, err)
		}
		for _, e := range elements {
			value := string(e.Val)
			if t.verdicts(name) {
				if value, err = chainOf(e.Val); err != nil {
					return fmt.Errorf("list elements of %s: %w", name, err)
				}
			}
			t.present.set(place{name, string(e.Key)}, content{value: value})
		}
	}
	return nil
}

// chainOf returns the chain that an element of a verdict map leads to. The library returns
// verdicts as they come from the kernel.
func chainOf(verdict []byte) (string, error) {
	attributes, err := netlink.NewAttributeDecoder(verdict)
	if err != nil {
		return "", err
	}
	chain := ""
	for attributes.Next() {
		if attributes.Type() == unix.NFTA_VERDICT_CHAIN {
			chain = attributes.String()
		}
	}
	return chain, attributes.Err()
}

// Counters returns how many packets the rules of a chain that count have seen, by the
// rule's place.
func (t *Table) Counters(chain string) (packets uint64, err error) {
	conn, err := t.connect()
	if err != nil {
		return 0, err
	}
	rules, err := conn.GetRules(t.table, &nftables.Chain{Name: chain})
	if err != nil {
		return 0, fmt.Errorf("list nftables rules: %w", err)
	}
	for _, r := range rules {
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Counter); ok {
				packets += c.Packets
			}
		}
	}
	return packets, nil
}
