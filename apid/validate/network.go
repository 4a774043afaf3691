package validate

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
)

const (
	// IngressNetwork is the name of the ingress network that is created with the first
	// service that needs one.
	IngressNetwork = "ingress"

	overlayDriver = defaults.NetworkDriver
	bridgeDriver  = "bridge"
	CNIDriver     = "cni"
	// cniConfig is the option of the driver cni that names a configuration on the nodes.
	cniConfig = "config"
)

// Limits of networks.
const (
	minMTU, minMTU6, maxMTU = 576, 1280, 65535
	// maxReserved bounds the reserved addresses of one subnet.
	maxReserved = 256
	// maxPools bounds the address pools of a cluster.
	maxPools = 32
)

// family is what holds for the subnets of IPv4, or of IPv6.
type family struct {
	name string
	// shortest and longest are the limits of the prefix length of a subnet.
	shortest, longest int
}

// familyOf returns the family of an address. The longest prefixes leave eight addresses:
// for the network, two nodes and what the family itself takes.
func familyOf(a netip.Addr) family {
	if a.Is4() {
		return family{"IPv4", 8, 29}
	}
	return family{"IPv6", 32, 125}
}

// reservedNames are words that --network of Docker takes for networks of its own. A
// network of that name could not be meant.
func reservedNames() map[string]string {
	return map[string]string{
		"host":    "it means the node's own network",
		"none":    "it means no network",
		"bridge":  "in Docker it is the network of containers that join no other",
		"default": "in Docker it is the network of containers that join no other",
	}
}

// networkGaps is the table of what a network's spec may contain and Muster does not act
// on yet.
func networkGaps() []gap {
	return []gap{
		{shape: "configFrom", what: "a network does not take its settings from another one; repeat them"},
		{shape: "ipam.driver", what: "only the built-in allocator gives addresses; leave the driver out"},
	}
}

// Network checks the spec of a new network. A driver of which only plugins know must be
// one that a node of the catalog has.
func (v *Validator) Network(spec *musterv1.NetworkSpec, catalog *Catalog) error {
	return v.network(spec, catalog).Err()
}

func (v *Validator) network(spec *musterv1.NetworkSpec, catalog *Catalog) *Report {
	r := &Report{}
	if spec == nil {
		r.Invalid("spec", "is required")
		return r
	}
	gaps := indexGaps(networkGaps())
	walk(spec.ProtoReflect(), "spec", "", func(path, shape string, fd protoreflect.FieldDescriptor, value protoreflect.Value) {
		wellFormed(r, path, fd, value)
		for _, g := range gaps[shape] {
			g.report(r, path, value)
		}
	})
	v.pattern.checkName(r, "spec.name", spec.Name)
	if meaning := reservedNames()[strings.ToLower(spec.Name)]; meaning != "" {
		r.Invalid("spec.name", "%q is reserved: %s; choose another name", spec.Name, meaning)
	}
	if strings.EqualFold(spec.Name, IngressNetwork) && !spec.Ingress {
		r.Invalid("spec.name", "%q is the name of the network that published ports lead into; choose another name, or set ingress", spec.Name)
	}
	checkLabels(r, "spec.labels", spec.Labels)
	checkDriver(r, spec, catalog)
	dual := checkSubnets(r, "spec.ipam.configs", spec)
	least := uint32(minMTU)
	if dual {
		least = minMTU6
	}
	if spec.Mtu != 0 && (spec.Mtu < least || spec.Mtu > maxMTU) {
		r.Invalid("spec.mtu", "is %d; must be from %d to %d, or 0 to derive it from the network between the nodes", spec.Mtu, least, maxMTU)
	}
	return r
}

// checkEncrypted refuses an encrypted network that no node could serve.
func checkEncrypted(r *Report, spec *musterv1.NetworkSpec, catalog *Catalog) {
	driver := cmp.Or(spec.GetDriver().GetName(), overlayDriver)
	switch {
	case !spec.Encrypted:
	case driver == bridgeDriver:
		r.Invalid("spec.encrypted", "cannot be set for the driver %q: its traffic does not leave a node", bridgeDriver)
	case driver != overlayDriver || catalog.encrypts:
	case len(catalog.plain) > 0:
		r.Waiting("spec.encrypted", "no node can encrypt networks: %s", strings.Join(catalog.plain, "; "))
	default:
		r.Waiting("spec.encrypted", "no node has a network plugin that can encrypt networks; install muster-network-overlay on the nodes first")
	}
}

// checkDriver checks the driver, and what cannot be combined with it.
func checkDriver(r *Report, spec *musterv1.NetworkSpec, catalog *Catalog) {
	driver := spec.GetDriver().GetName()
	for _, option := range slices.Sorted(maps.Keys(spec.GetDriver().GetOptions())) {
		if driver != CNIDriver || option != cniConfig {
			r.Invalid(keyed("spec.driver.options", option), "is not an option of the driver %q; settings such as the MTU are fields of the spec", cmp.Or(driver, overlayDriver))
		}
	}
	switch driver {
	case "", overlayDriver, bridgeDriver:
	case CNIDriver:
		if !catalog.drivers[CNIDriver] {
			r.Waiting("spec.driver.name", "no node has a network plugin with the driver %q; install muster-network-cni on the nodes first", CNIDriver)
		}
		const own = "cannot be set for the driver %q: the CNI configuration on the nodes decides it"
		if len(spec.GetIpam().GetConfigs()) > 0 {
			r.Invalid("spec.ipam.configs", own, CNIDriver)
		}
		if spec.Ipv6Enabled {
			r.Invalid("spec.ipv6Enabled", own, CNIDriver)
		}
		if spec.Mtu != 0 {
			r.Invalid("spec.mtu", own, CNIDriver)
		}
		if spec.Internal {
			r.Invalid("spec.internal", own, CNIDriver)
		}
		if spec.Encrypted {
			r.Invalid("spec.encrypted", own, CNIDriver)
		}
	case "host", "none":
		r.Invalid("spec.driver.name", "%q needs no network: name it in the service instead (--network %s)", driver, driver)
	default:
		r.Invalid("spec.driver.name", "there is no driver %q; want overlay (the default), bridge or cni", short(driver))
	}
	checkEncrypted(r, spec, catalog)
	if !spec.Ingress {
		return
	}
	if driver != "" && driver != overlayDriver {
		r.Invalid("spec.driver.name", "must be overlay for the ingress network: it spans all nodes")
	}
	if spec.Attachable {
		r.Invalid("spec.attachable", "the ingress network cannot be joined")
	}
	if spec.Internal {
		r.Invalid("spec.internal", "the ingress network leads in from outside, so it cannot be internal")
	}
}

// checkSubnets checks what addresses a network asks for, and reports whether it has IPv6.
func checkSubnets(r *Report, field string, spec *musterv1.NetworkSpec) (dual bool) {
	dual = spec.Ipv6Enabled
	configs := spec.GetIpam().GetConfigs()
	given := map[string]int{}
	for i, c := range configs {
		at := Indexed(field, i)
		if c.Subnet == "" {
			r.Invalid(at+".subnet", "is required: leave the entry out to get a subnet from the cluster's pool")
			continue
		}
		subnet, ok := checkSubnet(r, at+".subnet", c.Subnet)
		if !ok {
			continue
		}
		f := familyOf(subnet.Addr())
		if first, again := given[f.name]; again {
			r.Invalid(at+".subnet", "%s is a second %s subnet, after that of %s; a network has at most one of each family", c.Subnet, f.name, Indexed(field, first))
			continue
		}
		given[f.name] = i
		if f.name == "IPv6" && !spec.Ipv6Enabled {
			dual = true
			r.Invalid(at+".subnet", "is an IPv6 subnet; set ipv6Enabled too (--ipv6)")
		}
		checkWithin(r, at, c, subnet)
	}
	return dual
}

// checkSubnet parses a subnet that is used for the addresses of tasks.
func checkSubnet(r *Report, field, text string) (netip.Prefix, bool) {
	p, ok := checkPrefix(r, field, text)
	if !ok {
		return p, false
	}
	if f := familyOf(p.Addr()); p.Bits() < f.shortest || p.Bits() > f.longest {
		r.Invalid(field, "%s: the prefix length of an %s subnet must be from /%d to /%d", text, f.name, f.shortest, f.longest)
		return p, false
	}
	return p, true
}

// checkPrefix parses a range of addresses that hosts can have.
func checkPrefix(r *Report, field, text string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil || p.Addr().Is4In6():
		r.Invalid(field, "%q is not in CIDR notation; want for example 10.1.0.0/16", short(text))
		return p, false
	case p != p.Masked():
		r.Invalid(field, "%s has bits outside its prefix; did you mean %s?", text, p.Masked())
		return p, false
	}
	for _, special := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/16", "fe80::/10", "ff00::/8"} {
		if s := netip.MustParsePrefix(special); p.Overlaps(s) {
			r.Invalid(field, "%s overlaps with %s, whose addresses hosts cannot have", text, s)
			return p, false
		}
	}
	return p, true
}

// checkPools checks the ranges of which networks get their subnets.
func checkPools(r *Report, field string, pools []*musterv1.AddressPool) {
	if len(pools) > maxPools {
		r.Invalid(field, "has %d entries; at most %d are allowed", len(pools), maxPools)
		return
	}
	bases := make([]netip.Prefix, len(pools))
	for i, pool := range pools {
		at := Indexed(field, i)
		base, ok := checkPrefix(r, at+".base", pool.Base)
		if !ok {
			continue
		}
		f := familyOf(base.Addr())
		if first := slices.IndexFunc(bases[:i], func(p netip.Prefix) bool { return p.IsValid() && p.Overlaps(base) }); first >= 0 {
			r.Invalid(at+".base", "%s overlaps with %s of %s", pool.Base, bases[first], Indexed(field, first))
		}
		bases[i] = base
		if shortest := max(base.Bits(), f.shortest); int64(pool.Size) < int64(shortest) || int64(pool.Size) > int64(f.longest) {
			r.Invalid(at+".size", "is %d; must be from %d to %d, the prefix length of the subnets that %s is cut into", pool.Size, shortest, f.longest, pool.Base)
		}
	}
}

// checkWithin checks that a subnet contains what its configuration names.
func checkWithin(r *Report, at string, c *musterv1.IPAMConfig, subnet netip.Prefix) {
	if c.Range != "" {
		p, err := netip.ParsePrefix(c.Range)
		switch f := familyOf(subnet.Addr()); {
		case err != nil || p != p.Masked():
			r.Invalid(at+".range", "%q is not in CIDR notation; want a part of %s", short(c.Range), subnet)
		case !subnet.Overlaps(p) || p.Bits() < subnet.Bits():
			r.Invalid(at+".range", "%s is not a part of %s", c.Range, subnet)
		case p.Bits() > f.longest:
			r.Invalid(at+".range", "%s is too small; the longest prefix is /%d", c.Range, f.longest)
		}
	}
	if c.Gateway != "" {
		checkHost(r, at+".gateway", c.Gateway, subnet)
	}
	if len(c.Reserved) > maxReserved {
		r.Invalid(at+".reserved", "has %d entries; at most %d are allowed", len(c.Reserved), maxReserved)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(c.Reserved)) {
		checkHost(r, keyed(at+".reserved", name), c.Reserved[name], subnet)
	}
}

// checkHost checks an address of a host in a subnet.
func checkHost(r *Report, field, text string, subnet netip.Prefix) {
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil || a.Zone() != "":
		r.Invalid(field, "%q is not an IP address", short(text))
	case !subnet.Contains(a):
		r.Invalid(field, "%s is not in the subnet %s", text, subnet)
	}
}
