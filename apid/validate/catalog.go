package validate

import (
	"iter"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

const (
	// containerKind is the kind of the runtime that a container spec needs.
	containerKind = "container"
	// fieldCapability begins the capabilities that name fields of a container
	// spec.
	fieldCapability = "container."
)

// Catalog is what the executors of all nodes say that they can run. It is
// immutable.
type Catalog struct {
	nodes int
	// generic holds, by kind, one executor of each published schema.
	generic map[string][]*musterv1.ExecutorDescription
	// honoured holds, for each distinct container executor, the fields that it
	// acts on. It is empty if one of them does not say.
	honoured []map[string]bool
	// unknown names, with what ails them, executors that have not said what they
	// run.
	unknown []string
}

// NewCatalog gathers the executors of a number of nodes.
func NewCatalog(nodes int, executors iter.Seq[*musterv1.ExecutorDescription]) *Catalog {
	c := &Catalog{nodes: nodes, generic: map[string][]*musterv1.ExecutorDescription{}}
	silent := false
	seen := map[string]bool{}
	for e := range executors {
		if len(e.Kinds) == 0 {
			c.addUnknown(e)
		}
		for _, kind := range e.Kinds {
			if kind != containerKind {
				c.addGeneric(kind, e)
				continue
			}
			fields := honours(e)
			if len(fields) == 0 {
				silent = true
				continue
			}
			if id := strings.Join(sortedKeys(fields), " "); !seen[id] {
				seen[id] = true
				c.honoured = append(c.honoured, fields)
			}
		}
	}
	if silent {
		c.honoured = nil
	}
	return c
}

func (c *Catalog) addGeneric(kind string, e *musterv1.ExecutorDescription) {
	same := func(o *musterv1.ExecutorDescription) bool { return o.PayloadSchema == e.PayloadSchema }
	if !slices.ContainsFunc(c.generic[kind], same) {
		c.generic[kind] = append(c.generic[kind], e)
	}
}

// addUnknown notes an executor that may turn out to run what nobody else does.
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

func honours(e *musterv1.ExecutorDescription) map[string]bool {
	fields := map[string]bool{}
	for _, c := range e.Capabilities {
		if f, ok := strings.CutPrefix(c, fieldCapability); ok {
			fields[f] = true
		}
	}
	return fields
}

// kinds lists the generic kinds for people.
func (c *Catalog) kinds() string {
	if len(c.generic) == 0 {
		return "none"
	}
	return strings.Join(sortedKeys(c.generic), ", ")
}

// checkContainer refuses fields that no container executor acts on. Without
// any executor that says which it acts on, the scheduler is left to wait for
// one.
func (c *Catalog) checkContainer(r *Report, field string, spec *musterv1.ContainerSpec) {
	if len(c.honoured) == 0 {
		return
	}
	var missing []string
	for i, fields := range c.honoured {
		var lacks []string
		spec.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			if fd.Name() == "isolation" && v.String() == "default" {
				// What every executor does.
				return true
			}
			if !fields[string(fd.Name())] && !fields[fd.JSONName()] {
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
