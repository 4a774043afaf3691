package validate

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/placement"
)

const (
	// containerKind is the kind of the runtime that a container spec needs.
	containerKind = placement.ContainerKind
	// mostListed bounds how many kinds an error lists.
	mostListed = 16
)

// Catalog is what the nodes offer to tasks, by kind. What nodes offer that take
// new tasks counts. Where none of those offers a kind, what the other nodes offer
// does: they may be back in a moment, and tasks wait for them. It is immutable.
type Catalog struct {
	nodes int
	ready map[string]*offered
	known map[string]*offered
	// unknown names, with what ails them, executors that have not said what they
	// run.
	unknown []string
	// drivers are the network drivers that nodes have, healthy or not.
	drivers map[string]bool
	// dataPaths are the UDP ports on which nodes get the traffic of networks.
	dataPaths map[uint32]bool
	// encrypts says that a node's network plugin can encrypt, and plain is what others lack
	// for it, in their words.
	encrypts bool
	plain    []string
}

// offered is what nodes offer to tasks of one kind.
type offered struct {
	kind  string
	nodes int
	// variants holds one executor for each distinct payload schema, or set of
	// honoured fields, that of most nodes first.
	variants []*variant
	// attaches says that an executor among them attaches tasks to networks.
	attaches bool
	// provides says that one makes the namespaces of its tasks.
	provides bool
	// groups says that an executor among them runs task groups.
	groups bool
	index  map[string]*variant
}

// variant is what a number of nodes offer alike.
type variant struct {
	*placement.Offer
	nodes int
	// honoured are the fields of a container spec that it acts on.
	honoured map[string]bool
}

// NewCatalog gathers what nodes offer. Nodes that were removed do not count.
func NewCatalog(nodes iter.Seq[*placement.Node]) *Catalog {
	c := &Catalog{ready: map[string]*offered{}, known: map[string]*offered{}, drivers: map[string]bool{}, dataPaths: map[uint32]bool{defaults.DataPathPort: true}}
	for n := range nodes {
		if n.Removed {
			continue
		}
		c.nodes++
		for _, plugin := range n.Description.GetNetworkDrivers() {
			for _, driver := range plugin.Drivers {
				c.drivers[driver] = true
			}
			c.addEncryption(plugin)
		}
		if path := n.Description.GetDataPath(); path != nil {
			c.dataPaths[path.Port] = true
			if p := path.EncryptedPort; p != 0 {
				// It is one of two, which take turns.
				c.dataPaths[p-1], c.dataPaths[p], c.dataPaths[p+1] = true, true, true
			}
		}
		seen := map[string]bool{}
		for _, e := range n.Description.GetExecutors() {
			if len(e.Kinds) == 0 {
				c.addUnknown(e)
			}
			for _, kind := range e.Kinds {
				if !seen[kind] {
					seen[kind] = true
					c.add(kind, n)
				}
			}
		}
	}
	for _, tier := range []map[string]*offered{c.ready, c.known} {
		for _, o := range tier {
			slices.SortStableFunc(o.variants, func(a, b *variant) int { return cmp.Compare(b.nodes, a.nodes) })
		}
	}
	return c
}

// addEncryption notes whether a network plugin can encrypt networks.
func (c *Catalog) addEncryption(plugin *musterv1.NetworkDriverDescription) {
	const most = 3
	if !slices.Contains(plugin.Drivers, overlayDriver) {
		return
	}
	c.encrypts = c.encrypts || slices.Contains(plugin.Capabilities, encryptedCapability)
	for _, lacks := range plugin.Missing {
		if why, ok := strings.CutPrefix(lacks, encryptedCapability+": "); ok && len(c.plain) < most && !slices.Contains(c.plain, clip(why)) {
			c.plain = append(c.plain, clip(why))
		}
	}
}

// encryptedCapability is that of network plugins that encrypt networks.
const encryptedCapability = "encrypted"

// add notes what a node offers to tasks of a kind: its first healthy executor of
// it, as the scheduler has it.
func (c *Catalog) add(kind string, n *placement.Node) {
	offer := n.Offer(kind)
	if n.Available() && offer.Healthy() {
		addOffer(c.ready, kind, offer)
	}
	addOffer(c.known, kind, offer)
}

func addOffer(tier map[string]*offered, kind string, offer *placement.Offer) {
	o := tier[kind]
	if o == nil {
		o = &offered{kind: kind, index: map[string]*variant{}}
		tier[kind] = o
	}
	o.nodes++
	o.provides = o.provides || slices.Contains(offer.Capabilities, placement.ProvidesNetwork)
	o.attaches = o.attaches || o.provides || slices.Contains(offer.Capabilities, placement.AcceptsNetwork)
	o.groups = o.groups || runsGroups(offer)
	key := offer.PayloadSchemaError + "\x00" + offer.PayloadSchema
	var honoured map[string]bool
	if kind == containerKind {
		honoured = offer.HonouredFields()
		key = strings.Join(slices.Sorted(maps.Keys(honoured)), " ")
	}
	v := o.index[key]
	if v == nil {
		v = &variant{Offer: offer, honoured: honoured}
		o.index[key] = v
		o.variants = append(o.variants, v)
	}
	v.nodes++
}

// addUnknown notes an executor that may turn out to run what no other does.
func (c *Catalog) addUnknown(e *musterv1.ExecutorDescription) {
	const most = 3
	name := short(e.Name)
	if e.Message != "" {
		name += " (" + clip(e.Message) + ")"
	}
	if len(c.unknown) < most && !slices.Contains(c.unknown, name) {
		c.unknown = append(c.unknown, name)
	}
}

// CarriesNetworks reports whether a node gets the traffic of networks on a port, or would
// by default.
func (c *Catalog) CarriesNetworks(p *musterv1.PortConfig) bool {
	return defaults.Protocol(p) == musterv1.PortConfig_UDP && c.dataPaths[p.GetPublishedPort()]
}

// offered returns what counts for tasks of a kind, nil if no node offers it.
func (c *Catalog) offered(kind string) *offered {
	if o := c.ready[kind]; o != nil {
		return o
	}
	return c.known[kind]
}

// kinds lists the generic kinds for people, those of most nodes first if there
// are many.
func (c *Catalog) kinds() string {
	all := slices.SortedFunc(maps.Values(c.known), func(a, b *offered) int {
		return cmp.Or(cmp.Compare(b.nodes, a.nodes), cmp.Compare(a.kind, b.kind))
	})
	all = slices.DeleteFunc(all, func(o *offered) bool { return o.kind == containerKind })
	if len(all) == 0 {
		return "none"
	}
	var names []string
	for _, o := range all[:min(len(all), mostListed)] {
		names = append(names, short(o.kind))
	}
	slices.Sort(names)
	list := strings.Join(names, ", ")
	if more := len(all) - len(names); more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	return list
}

// checkContainer refuses fields that no container executor acts on. Without
// any executor that says which it acts on, the scheduler is left to wait for
// one.
func (c *Catalog) checkContainer(r *Report, field string, spec *musterv1.ContainerSpec) {
	o := c.offered(containerKind)
	if o == nil {
		return
	}
	var missing []string
	for i, v := range o.variants {
		if len(v.honoured) == 0 {
			return // it takes anything
		}
		var lacks []string
		spec.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, value protoreflect.Value) bool {
			if !placement.AsksNothing(fd, value) && !v.honoured[string(fd.Name())] && !v.honoured[fd.JSONName()] {
				lacks = append(lacks, fd.JSONName())
			}
			return true
		})
		if i == 0 || len(lacks) < len(missing) {
			missing = lacks
		}
	}
	slices.Sort(missing)
	for _, name := range missing {
		r.Invalid(field+"."+name, "no node has an executor for containers that acts on this field")
	}
}
