package placement

import (
	"fmt"
	"net/netip"
	"strings"
)

// Constraints must all hold on a node.
type Constraints []Constraint

// Constraint is one "key operator value".
type Constraint struct {
	key, value string
	negated    bool
}

// Values and names of labels consist of letters, digits and these. SwarmKit allows the
// same (manager/constraint).
const (
	inValue = ":-_ \t\n\f\r.*()?+[]\\^$|/"
	inLabel = "-_."
)

// consistsOf reports whether a text has nothing but letters and digits of ASCII and
// the given others. It must not be empty.
func consistsOf(text, others string) bool {
	for _, r := range text {
		letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
		if !letter && !strings.ContainsRune(others, r) {
			return false
		}
	}
	return text != ""
}

// Keys of constraints; those that end in a dot continue with a label's name.
const (
	keyID       = "node.id"
	keyHostname = "node.hostname"
	keyIP       = "node.ip"
	keyRole     = "node.role"
	keyOS       = "node.platform.os"
	keyArch     = "node.platform.arch"
	keyLabel    = "node.labels."
	keyEngine   = "engine.labels."
)

// ParseConstraints reads expressions like "node.labels.disk==ssd". Its error
// names the first that cannot be read, and why. SwarmKit takes a key that it
// does not know and then never places the task; here it is an error.
func ParseConstraints(expressions []string) (Constraints, error) {
	cs := make(Constraints, 0, len(expressions))
	for _, e := range expressions {
		c, err := parseConstraint(e)
		if err != nil {
			return nil, fmt.Errorf("constraint %q: %w", e, err)
		}
		cs = append(cs, c)
	}
	return cs, nil
}

func parseConstraint(expression string) (Constraint, error) {
	at, operator := -1, ""
	for _, op := range []string{"==", "!="} {
		if i := strings.Index(expression, op); i >= 0 && (at < 0 || i < at) {
			at, operator = i, op
		}
	}
	if at < 0 {
		return Constraint{}, fmt.Errorf("has no operator; want key==value or key!=value")
	}
	c := Constraint{
		key: strings.TrimSpace(expression[:at]), value: strings.TrimSpace(expression[at+len(operator):]), negated: operator == "!=",
	}
	if !consistsOf(c.value, inValue) {
		return Constraint{}, fmt.Errorf("value %q has characters that no value has", c.value)
	}
	// Keys are compared whatever the case of their letters, names of labels are
	// not.
	for _, known := range []string{keyLabel, keyEngine} {
		if len(c.key) > len(known) && strings.EqualFold(c.key[:len(known)], known) {
			c.key = known + c.key[len(known):]
			if name := c.key[len(known):]; !consistsOf(name, inLabel) || !consistsOf(name[:1], "") {
				return Constraint{}, fmt.Errorf("%q is not a label name", name)
			}
			return c, nil
		}
	}
	switch c.key = strings.ToLower(c.key); c.key {
	case keyIP:
		if _, err := netip.ParsePrefix(c.value); err == nil {
			return c, nil
		}
		if _, err := netip.ParseAddr(c.value); err != nil {
			return Constraint{}, fmt.Errorf("%q is neither an address nor a subnet in CIDR notation", c.value)
		}
		return c, nil
	case keyID, keyHostname, keyRole, keyOS, keyArch:
		return c, nil
	}
	return Constraint{}, fmt.Errorf("there is no key %q; keys are node.id, node.hostname, node.ip, node.role, "+
		"node.platform.os, node.platform.arch, node.labels.NAME and engine.labels.NAME", c.key)
}

// Match reports whether all constraints hold on a node.
func (cs Constraints) Match(n *Node) bool {
	for _, c := range cs {
		if !c.met(n) {
			return false
		}
	}
	return true
}

// String returns the expression, without the spaces that do not count.
func (c Constraint) String() string {
	if c.negated {
		return c.key + "!=" + c.value
	}
	return c.key + "==" + c.value
}

// met reports whether the constraint holds on a node.
func (c Constraint) met(n *Node) bool { return c.holds(n) != c.negated }

// holds reports whether the value is the node's, before negation. A label that
// is missing is "".
func (c Constraint) holds(n *Node) bool {
	is := func(value string) bool { return strings.EqualFold(value, c.value) }
	switch c.key {
	case keyID:
		return is(n.ID)
	case keyHostname:
		return is(n.Description.GetHostname())
	case keyRole:
		return is("worker")
	case keyOS:
		return is(n.Description.GetPlatform().GetOs())
	case keyArch:
		return architecture(n.Description.GetPlatform().GetArchitecture()) == architecture(strings.ToLower(c.value))
	case keyIP:
		return c.holdsIP(n.Address)
	}
	if name, ok := strings.CutPrefix(c.key, keyLabel); ok {
		return is(n.Labels[name])
	}
	name := strings.TrimPrefix(c.key, keyEngine)
	return is(n.Description.GetLabels()[name])
}

func (c Constraint) holdsIP(address string) bool {
	at, err := netip.ParseAddr(address)
	if err != nil {
		withPort, err := netip.ParseAddrPort(address)
		if err != nil {
			return false
		}
		at = withPort.Addr()
	}
	at = at.Unmap()
	if subnet, err := netip.ParsePrefix(c.value); err == nil {
		return subnet.Contains(at)
	}
	want, err := netip.ParseAddr(c.value)
	return err == nil && want.Unmap() == at
}

// architecture maps the names that a kernel uses to Go's.
func architecture(name string) string {
	switch name {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return name
}
