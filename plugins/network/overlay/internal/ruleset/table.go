//go:build linux

// Package ruleset keeps nftables tables that consist of fixed rules, and of sets and maps
// whose elements are the data that changes.
package ruleset

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
)

// chunk is how many elements one transaction changes at most, unless one owner has more.
// The kernel processes no packet of the namespace's other tables while a transaction is
// committed.
const chunk = 1000

// Layout is the fixed part of a table.
type Layout struct {
	Name   string
	Family nftables.TableFamily
	Sets   []Set
	Chains []Chain
	// Dynamic returns the rules of chains that verdict maps lead to and that exist only
	// while an element leads there.
	Dynamic func(chain string) []Rule
}

// Set is a set or, if Data is given, a map.
type Set struct {
	Name      string
	Key, Data nftables.SetDatatype
}

// Chain is a chain. One without a hook is reached from others.
type Chain struct {
	Name     string
	Type     nftables.ChainType
	Hook     *nftables.ChainHook
	Priority nftables.ChainPriority
	Drop     bool
	Rules    []Rule
}

// Rule is a rule with a name.
type Rule struct {
	Name  string
	Exprs []expr.Any
}

// Element is an element of a set or map. The value of a verdict map is the name of a
// chain.
type Element struct {
	Set, Key, Value string
}

type place struct{ set, key string }

type content struct{ value, owner string }

// Table keeps one table. It is not safe for concurrent use.
type Table struct {
	layout Layout
	table  *nftables.Table
	sets   map[string]*nftables.Set
	conn   *nftables.Conn
	space  int
	change func(name string, call func() error) error

	// owned are the elements that must be there, by owner.
	owned   map[string][]Element
	changed map[string]bool
	// conflicts are the owners that lack elements because others have them.
	conflicts map[string]error
	// present are the elements that are there.
	present elements
	chains  map[string]bool
	known   bool
}

// New returns a table of the namespace with the given file descriptor. Changes are made
// through a function that may refuse them.
func New(layout Layout, space int, change func(string, func() error) error) *Table {
	t := &Table{
		layout: layout, space: space, change: change,
		table:   &nftables.Table{Name: layout.Name, Family: layout.Family},
		sets:    make(map[string]*nftables.Set),
		owned:   make(map[string][]Element),
		changed: make(map[string]bool), conflicts: make(map[string]error),
	}
	for i, s := range layout.Sets {
		t.sets[s.Name] = &nftables.Set{
			Table: t.table, Name: s.Name, ID: uint32(i + 1), KeyType: s.Key, DataType: s.Data,
			IsMap: s.Data.Name != "", Concatenation: len(nftables.ConcatSetTypeElements(s.Key)) > 1,
			KeyByteOrder: binaryutil.BigEndian,
		}
	}
	return t
}

// Put says which elements an owner has from now on. Commit makes it so.
func (t *Table) Put(owner string, elements []Element) {
	if slices.Equal(t.owned[owner], elements) {
		return
	}
	if len(elements) == 0 {
		delete(t.owned, owner)
	} else {
		t.owned[owner] = elements
	}
	t.changed[owner] = true
}

// Owners returns who has elements.
func (t *Table) Owners() []string { return slices.Sorted(maps.Keys(t.owned)) }

// HasOther reports whether an owner other than the given one has elements.
func (t *Table) HasOther(owner string) bool {
	for o := range t.owned {
		if o != owner {
			return true
		}
	}
	return false
}

// Close closes the connection to the kernel. The table remains.
func (t *Table) Close() error {
	if t.conn == nil {
		return nil
	}
	conn := t.conn
	t.conn = nil
	return conn.CloseLasting()
}

func (t *Table) connect() (*nftables.Conn, error) {
	if t.conn != nil {
		return t.conn, nil
	}
	// The kernel answers each message of a transaction before it is read.
	buffer := func(c *netlink.Conn) error {
		return errors.Join(c.SetReadBuffer(4<<20), c.SetWriteBuffer(4<<20))
	}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(t.space), nftables.WithSockOptions(buffer))
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	t.conn = conn
	return conn, nil
}

// flush sends what was queued as one transaction. A connection is not used again after an
// error: answers may be left in it.
func (t *Table) flush(name string) error {
	err := t.change(name, t.conn.Flush)
	if err != nil {
		err = errors.Join(err, t.Close())
		t.known = false
	}
	return err
}

// operation changes one element.
type operation struct {
	place
	owner    string
	old, new *string
}

// Commit makes the elements of owners that changed be in the kernel.
func (t *Table) Commit() error {
	if !t.known {
		return t.Verify()
	}
	if len(t.changed) == 0 {
		return nil
	}
	for owner := range t.changed {
		if len(t.owned[owner]) == 0 {
			delete(t.conflicts, owner)
		}
	}
	want := make(map[place]content)
	conflicts := make(map[string]error)
	for owner := range t.changed {
		for _, e := range t.owned[owner] {
			at := place{e.Set, e.Key}
			if other, taken := want[at]; taken && other.owner != owner {
				conflicts[owner] = &ConflictError{Set: e.Set, Owner: owner, Other: other.owner}
				continue
			}
			if have, taken := t.present.at[at]; taken && have.owner != owner && !t.changed[have.owner] {
				conflicts[owner] = &ConflictError{Set: e.Set, Owner: owner, Other: have.owner}
				continue
			}
			want[at] = content{e.Value, owner}
		}
	}
	have := make(map[place]content)
	for owner := range t.changed {
		for at := range t.present.of[owner] {
			have[at] = t.present.at[at]
		}
	}
	if err := t.apply(difference(have, want)); err != nil {
		return err
	}
	for owner := range t.changed {
		if c, ok := conflicts[owner]; ok {
			t.conflicts[owner] = c
		} else {
			delete(t.conflicts, owner)
		}
	}
	// An owner that lacks something tries again whenever another one changes.
	t.changed = make(map[string]bool)
	for owner := range t.conflicts {
		t.changed[owner] = true
	}
	return nil
}

// Conflict says why an owner does not have all of its elements. Nil if it has them.
func (t *Table) Conflict(owner string) error { return t.conflicts[owner] }

// ConflictError says that two owners want one key. The one that has it keeps it.
type ConflictError struct{ Set, Owner, Other string }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s and %s both use a key of %q", e.Owner, e.Other, e.Set)
}

// difference returns what leads from one state to another, grouped by owner.
func difference(have, want map[place]content) []operation {
	var all []operation
	for at, h := range have {
		w, stays := want[at]
		switch {
		case !stays:
			all = append(all, operation{place: at, owner: h.owner, old: &h.value})
		case w != h:
			all = append(all, operation{place: at, owner: w.owner, old: &h.value, new: &w.value})
		}
	}
	for at, w := range want {
		if _, there := have[at]; !there {
			all = append(all, operation{place: at, owner: w.owner, new: &w.value})
		}
	}
	slices.SortFunc(all, func(a, b operation) int {
		return cmp.Or(cmp.Compare(a.owner, b.owner), cmp.Compare(a.set, b.set), cmp.Compare(a.key, b.key))
	})
	return all
}

// apply changes elements in transactions that each hold whole owners.
func (t *Table) apply(all []operation) error {
	if _, err := t.connect(); err != nil {
		return err
	}
	for len(all) > 0 {
		n := min(chunk, len(all))
		for n > 0 && n < len(all) && all[n].owner == all[n-1].owner {
			n--
		}
		if n == 0 {
			for n = 1; n < len(all) && all[n].owner == all[0].owner; n++ {
			}
		}
		if err := t.transact(all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return t.collect()
}

func (t *Table) transact(part []operation) error {
	deletes, adds := make(map[string][]nftables.SetElement), make(map[string][]nftables.SetElement)
	for _, o := range part {
		if o.old != nil && o.new != nil && *o.old == *o.new {
			continue
		}
		if o.old != nil {
			deletes[o.set] = append(deletes[o.set], nftables.SetElement{Key: []byte(o.key)})
		}
		if o.new != nil {
			adds[o.set] = append(adds[o.set], t.element(o.place, *o.new))
			if t.verdicts(o.set) {
				t.addDynamic(*o.new)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(deletes)) {
		for c := range slices.Chunk(deletes[name], chunk) {
			if err := t.conn.SetDeleteElements(t.sets[name], c); err != nil {
				return err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(adds)) {
		for c := range slices.Chunk(adds[name], chunk) {
			if err := t.conn.SetAddElements(t.sets[name], c); err != nil {
				return err
			}
		}
	}
	if err := t.flush("change elements of " + t.layout.Name); err != nil {
		return err
	}
	for _, o := range part {
		if o.new == nil {
			t.present.remove(o.place)
		} else {
			t.present.set(o.place, content{*o.new, o.owner})
		}
	}
	return nil
}

func (t *Table) verdicts(set string) bool { return t.sets[set].DataType == nftables.TypeVerdict }

func (t *Table) element(at place, value string) nftables.SetElement {
	e := nftables.SetElement{Key: []byte(at.key)}
	switch {
	case t.verdicts(at.set):
		e.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: value}
	case t.sets[at.set].IsMap:
		e.Val = []byte(value)
	}
	return e
}

func (t *Table) addDynamic(name string) {
	if t.chains[name] {
		return
	}
	t.chains[name] = true
	t.addChain(Chain{Name: name, Rules: t.layout.Dynamic(name)})
}

func (t *Table) addChain(c Chain) {
	t.declareChain(c)
	t.addRules(c)
}

func (t *Table) declareChain(c Chain) {
	chain := &nftables.Chain{Table: t.table, Name: c.Name}
	if c.Hook != nil {
		policy := nftables.ChainPolicyAccept
		if c.Drop {
			policy = nftables.ChainPolicyDrop
		}
		chain.Type, chain.Hooknum, chain.Priority, chain.Policy = c.Type, c.Hook, &c.Priority, &policy
	}
	t.conn.AddChain(chain)
}

func (t *Table) addRules(c Chain) {
	for _, r := range c.Rules {
		t.conn.AddRule(&nftables.Rule{Table: t.table, Chain: &nftables.Chain{Name: c.Name}, Exprs: r.Exprs, UserData: t.mark(r)})
	}
}

// mark returns a comment with a rule's name and what the rule consists of. It tells
// whether a rule in the kernel is this one.
func (t *Table) mark(r Rule) []byte {
	h := sha256.New()
	for _, e := range r.Exprs {
		data, err := expr.Marshal(byte(t.layout.Family), e)
		if err != nil {
			continue // AddRule reports it.
		}
		h.Write(data)
	}
	return userdata.AppendString(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, r.Name+" "+hex.EncodeToString(h.Sum(nil)[:4]))
}

// collect removes chains that no element leads to any longer.
func (t *Table) collect() error {
	var gone []string
	for name := range t.chains {
		if t.present.leading[name] == 0 {
			gone = append(gone, name)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	for _, name := range gone {
		c := &nftables.Chain{Table: t.table, Name: name}
		t.conn.FlushChain(c)
		t.conn.DelChain(c)
	}
	if err := t.flush("delete chains of " + t.layout.Name); err != nil {
		return err
	}
	for _, name := range gone {
		delete(t.chains, name)
	}
	return nil
}

// Delete removes the table from the kernel.
func (t *Table) Delete() error {
	conn, err := t.connect()
	if err != nil {
		return err
	}
	there, err := t.exists(conn)
	if err != nil || !there {
		return err
	}
	conn.DelTable(t.table)
	t.known = false
	return t.flush("delete table " + t.layout.Name)
}

func (t *Table) exists(conn *nftables.Conn) (bool, error) {
	tables, err := conn.ListTablesOfFamily(t.layout.Family)
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(x *nftables.Table) bool { return x.Name == t.layout.Name }), nil
}
