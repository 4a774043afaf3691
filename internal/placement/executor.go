package placement

import (
	"crypto/sha256"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/reflect/protoreflect"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/payload"
)

// fieldCapability begins the capabilities that name fields of a container spec.
const fieldCapability = "container."

// digest names a text that a worker has chosen. It takes the place of the text where it
// is compared and remembered: a payload schema may have 64 KiB.
type digest [sha256.Size]byte

func digestOf(text string) digest { return sha256.Sum256([]byte(text)) }

// Offer is what a node's executor offers to tasks of the kinds that it runs.
type Offer struct {
	*musterv1.ExecutorDescription
	schema, capabilities digest
}

// Healthy reports whether the executor says that it works.
func (o *Offer) Healthy() bool { return o.Health == musterv1.ExecutorDescription_HEALTHY }

// HonouredFields returns the fields of a container spec that the executor acts on. It is
// empty if the executor does not say, which means that it is given any.
func (o *Offer) HonouredFields() map[string]bool {
	fields := map[string]bool{}
	for _, c := range o.Capabilities {
		if f, ok := strings.CutPrefix(c, fieldCapability); ok {
			fields[f] = true
		}
	}
	return fields
}

// Available reports whether the node is given new tasks.
func (n *Node) Available() bool {
	return !n.Removed && n.State == musterv1.NodeStatus_READY && n.Availability == musterv1.NodeSpec_ACTIVE
}

// Offer returns what the node offers to tasks of a kind: its first executor of
// the kind that is healthy. If none is, it returns the first of the kind, and nil
// if there is none.
func (n *Node) Offer(kind string) *Offer {
	var sick *Offer
	offers := n.executors()
	for i := range offers {
		switch o := &offers[i]; {
		case !slices.Contains(o.Kinds, kind):
		case o.Healthy():
			return o
		case sick == nil:
			sick = o
		}
	}
	return sick
}

// executors returns what the node's executors offer. It is computed on first use, because
// most nodes are only asked for labels.
func (n *Node) executors() []Offer {
	if known := n.offers.Load(); known != nil {
		return *known
	}
	all := n.Description.GetExecutors()
	offers := make([]Offer, len(all))
	for i, e := range all {
		offers[i] = Offer{
			ExecutorDescription: e, schema: digestOf(e.PayloadSchema),
			capabilities: digestOf(strings.Join(e.Capabilities, " ")),
		}
	}
	n.offers.Store(&offers)
	return offers
}

// Verdicts remembers which payload schemas accept which task specs, so that a
// scheduler checks each spec once against each schema, however many tasks and
// nodes there are. It remembers only schemas that ready nodes report: a worker may report
// new ones without end. It may be used by many goroutines.
type Verdicts struct {
	schemas *payload.Schemas

	mu sync.Mutex
	// reported holds the schemas of ready nodes.
	reported map[digest]*schemaVerdicts
	// size is the number of verdicts of all schemas.
	size int
}

// schemaVerdicts are those of one schema.
type schemaVerdicts struct {
	// executors is how many executors of ready nodes have the schema.
	executors int
	// accepts is by the digest of the task spec.
	accepts map[string]bool
}

// maxVerdicts bounds what is remembered: a cluster has a handful of schemas, and
// some thousand specs of generic runtimes. A verdict takes about 150 bytes.
const maxVerdicts = 1 << 16

// NewVerdicts returns an empty memory.
func NewVerdicts() *Verdicts {
	return &Verdicts{schemas: payload.NewSchemas(), reported: map[digest]*schemaVerdicts{}}
}

// Replace records that a node's record changed: its schemas are remembered while a ready
// node reports them. Either node may be nil.
func (v *Verdicts) Replace(before, after *Node) {
	v.mu.Lock()
	defer v.mu.Unlock()
	// A schema that both have stays.
	v.count(after, 1)
	v.count(before, -1)
}

func (v *Verdicts) count(n *Node, change int) {
	if n == nil || n.Removed || n.State != musterv1.NodeStatus_READY {
		return
	}
	offers := n.executors()
	for i := range offers {
		o := &offers[i]
		if o.PayloadSchema == "" {
			continue
		}
		known := v.reported[o.schema]
		if known == nil {
			known = &schemaVerdicts{accepts: map[string]bool{}}
			v.reported[o.schema] = known
		}
		if known.executors += change; known.executors <= 0 {
			v.size -= len(known.accepts)
			delete(v.reported, o.schema)
		}
	}
}

// accepts reports whether an offer's schema accepts the payload of the spec with a
// digest.
func (v *Verdicts) accepts(o *Offer, spec string, g *musterv1.GenericRuntime) bool {
	v.mu.Lock()
	if known := v.reported[o.schema]; known != nil {
		if accepted, ok := known.accepts[spec]; ok {
			v.mu.Unlock()
			return accepted
		}
	}
	v.mu.Unlock()
	s := v.schemas.Get(o.PayloadSchema)
	p, err := payload.New(g)
	accepted := err == nil && s.Err() == nil && len(s.Check(p)) == 0
	v.remember(o.schema, spec, accepted)
	return accepted
}

func (v *Verdicts) remember(schema digest, spec string, accepted bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.size >= maxVerdicts {
		for _, s := range v.reported {
			clear(s.accepts)
		}
		v.size = 0
	}
	known := v.reported[schema]
	if known == nil {
		return
	}
	if _, ok := known.accepts[spec]; !ok {
		v.size++
	}
	known.accepts[spec] = accepted
}

// runtime is what one container of a request asks of an executor beyond its kind.
type runtime struct {
	// name is that of a container of a group; the main container has none.
	name    string
	generic *musterv1.GenericRuntime
	// fields are the names of the fields that a container spec sets.
	fields []fieldName
	// verdicts keeps the answers under spec, a digest: [Request.Remember].
	verdicts *Verdicts
	spec     string

	last atomic.Pointer[verdict]
}

// verdict is the answer to the schema, or the capabilities, that a request was
// checked against last. Most nodes of a cluster say the same.
type verdict struct {
	on       digest
	accepted bool
}

// fieldName is a field's name in the contract, and in JSON: a capability may be
// either.
type fieldName struct{ text, json string }

// defaulted reports whether the API server fills in a field of a container spec
// where the user says nothing. That it is set asks nothing of an executor.
func defaulted(field string) bool { return field == "stop_grace_period" || field == "pull_options" }

// AsksNothing reports whether a field of a container spec has a value that is what
// every executor does, or that is for the worker.
func AsksNothing(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
	switch field.Name() {
	case "secrets", "configs":
		return true
	case "isolation":
		return value.String() == "default"
	}
	return false
}

func newRuntime(name string, task *musterv1.TaskSpec) *runtime {
	r := &runtime{name: name, generic: task.GetGeneric()}
	if r.generic != nil {
		r.verdicts = NewVerdicts()
	}
	task.GetContainer().ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		if name := string(fd.Name()); !defaulted(name) && !AsksNothing(fd, value) {
			r.fields = append(r.fields, fieldName{name, fd.JSONName()})
		}
		return true
	})
	return r
}

// Remember makes the request keep the verdicts on its payload in v, under the digest of its
// task spec.
func (r *Request) Remember(v *Verdicts, spec string) {
	for _, c := range r.runtimes {
		c.verdicts, c.spec = v, spec
		if c.name != "" {
			c.spec += "/" + c.name
		}
	}
}

// checkRuntimes reports whether an executor that runs the kind accepts all containers.
func (r *Request) checkRuntimes(o *Offer) Filter {
	for _, c := range r.runtimes {
		if refusal := c.check(o); refusal != FilterNone {
			return refusal
		}
	}
	return FilterNone
}

// check reports whether an executor that runs the kind accepts the spec. A request without
// a spec requires only the kind.
func (r *runtime) check(o *Offer) Filter {
	if r == nil {
		return FilterNone
	}
	key, refusal := o.capabilities, FilterCapability
	if r.generic != nil {
		if o.PayloadSchemaError != "" {
			return FilterPayload
		}
		if o.PayloadSchema == "" {
			return FilterNone
		}
		key, refusal = o.schema, FilterPayload
	} else if len(r.fields) == 0 {
		return FilterNone
	}
	last := r.last.Load()
	if last == nil || last.on != key {
		last = &verdict{on: key}
		if r.generic != nil {
			last.accepted = r.verdicts.accepts(o, r.spec, r.generic)
		} else {
			last.accepted = r.honouredBy(o)
		}
		r.last.Store(last)
	}
	if !last.accepted {
		return refusal
	}
	return FilterNone
}

func (r *runtime) honouredBy(o *Offer) bool { return len(r.ignoredBy(o)) == 0 }

// ignoredBy returns the fields that the spec sets and the executor does not act on.
func (r *runtime) ignoredBy(o *Offer) []fieldName {
	honoured := o.HonouredFields()
	if len(honoured) == 0 {
		return nil
	}
	var ignored []fieldName
	for _, f := range r.fields {
		if !honoured[f.text] && !honoured[f.json] {
			ignored = append(ignored, f)
		}
	}
	return ignored
}
