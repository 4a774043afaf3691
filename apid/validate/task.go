package validate

import (
	"fmt"
	"math"
	"strings"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

const (
	minNanoCPUs = 1_000_000
	minMemory   = 4 << 20
	maxKind     = 63
)

func (v *Validator) task(r *Report, field string, t *musterv1.TaskSpec, catalog *Catalog) {
	switch runtime := t.Runtime.(type) {
	case nil:
		r.Invalid(field, "must have a container or a generic runtime")
	case *musterv1.TaskSpec_Container:
		if runtime.Container == nil {
			r.Invalid(field+".container", "is required")
			break
		}
		v.container(r, field+".container", runtime.Container)
		catalog.checkContainer(r, field+".container", runtime.Container)
	case *musterv1.TaskSpec_Generic:
		v.generic(r, field+".generic", runtime.Generic, catalog)
	}
	v.resources(r, field+".resources", t.Resources)
	v.group(r, field+".group", t, catalog)
	v.placement(r, field+".placement", t.Placement)
	v.attachments(r, field+".networks", t.Networks)
	if d := t.LogDriver; d != nil {
		if d.Name == "" {
			r.Invalid(field+".logDriver.name", "is required")
		}
		checkLabels(r, field+".logDriver.options", d.Options)
	}
}

// generic checks a payload against the schemas of the executors that run its
// kind.
func (v *Validator) generic(r *Report, field string, g *musterv1.GenericRuntime, catalog *Catalog) {
	kind := g.GetKind()
	switch {
	case kind == "":
		r.Invalid(field+".kind", "is required")
		return
	case len(kind) > maxKind:
		r.Invalid(field+".kind", "has %d characters; at most %d are allowed", len(kind), maxKind)
		return
	case !v.pattern.kind.MatchString(kind):
		r.Invalid(field+".kind", `must consist of letters, digits, "-", "_" and "."`)
		return
	case kind == containerKind || kind == "attachment":
		r.Invalid(field+".kind", "%q is not a generic runtime; use spec.task.container", kind)
		return
	case catalog.nodes == 0:
		r.Waiting(field+".kind", "no node has registered yet, so no executor runs %q; start a worker whose executor does, then try again", kind)
		return
	}
	offered := catalog.offered(kind)
	switch {
	case offered != nil:
		v.checkPayload(r, field, g, offered)
	case len(catalog.unknown) > 0:
		r.Waiting(field+".kind", "there is no kind %q; kinds that nodes run: %s; these executors have not said yet which they run: %s",
			short(kind), catalog.kinds(), strings.Join(catalog.unknown, ", "))
	default:
		r.Invalid(field+".kind", "there is no kind %q; kinds that nodes run: %s", short(kind), catalog.kinds())
	}
}

func (v *Validator) resources(r *Report, field string, rr *musterv1.ResourceRequirements) {
	if rr == nil {
		return
	}
	checkAmounts(r, field+".limits", rr.Limits.GetNanoCpus(), rr.Limits.GetMemoryBytes())
	checkAmounts(r, field+".reservations", rr.Reservations.GetNanoCpus(), rr.Reservations.GetMemoryBytes())
	if rr.Limits.GetPids() < 0 {
		r.Invalid(field+".limits.pids", "must not be negative")
	}
	if limit := rr.Limits.GetNanoCpus(); limit > 0 && rr.Reservations.GetNanoCpus() > limit {
		r.Invalid(field+".limits.nanoCpus", "must not be less than what is reserved")
	}
	if limit := rr.Limits.GetMemoryBytes(); limit > 0 && rr.Reservations.GetMemoryBytes() > limit {
		r.Invalid(field+".limits.memoryBytes", "must not be less than what is reserved")
	}
	for i, g := range rr.Reservations.GetGeneric() {
		v.genericResource(r, Indexed(field+".reservations.generic", i), g)
	}
	if rr.SwapBytes != nil && *rr.SwapBytes < -1 {
		r.Invalid(field+".swapBytes", "must be -1 (no limit), 0 or more")
	}
	if s := rr.MemorySwappiness; s != nil && (*s < 0 || *s > 100) {
		r.Invalid(field+".memorySwappiness", "must be from 0 to 100")
	}
}

func (v *Validator) genericResource(r *Report, field string, g *musterv1.GenericResource) {
	if g.Kind == "" {
		r.Invalid(field+".kind", "is required")
	}
	switch res := g.Resource.(type) {
	case *musterv1.GenericResource_Discrete:
		if res.Discrete <= 0 {
			r.Invalid(field+".discrete", "must be more than 0")
		}
	case *musterv1.GenericResource_Named:
		r.Invalid(field+".named", "only an amount can be reserved; use discrete")
	default:
		r.Invalid(field, "must have an amount (discrete)")
	}
}

func checkAmounts(r *Report, field string, nanoCPUs, memory int64) {
	if nanoCPUs < 0 || (nanoCPUs > 0 && nanoCPUs < minNanoCPUs) {
		r.Invalid(field+".nanoCpus", "is %d; must be 0 or at least %d (0.001 of a core)", nanoCPUs, minNanoCPUs)
	}
	if nanoCPUs > math.MaxInt64/1024 {
		// Sums over a node's tasks must not overflow.
		r.Invalid(field+".nanoCpus", "is too large")
	}
	if memory < 0 || (memory > 0 && memory < minMemory) {
		r.Invalid(field+".memoryBytes", "is %d; must be 0 or at least %d (4 MiB)", memory, minMemory)
	}
	if memory > math.MaxInt64/1024 {
		r.Invalid(field+".memoryBytes", "is too large")
	}
}

// constraintPattern names the kind of pattern that a constraint's value is, "" if
// it is none. Such values are compared literally, so that no node would match.
func constraintPattern(constraint string) string {
	_, value, ok := strings.Cut(constraint, "==")
	if _, other, differs := strings.Cut(constraint, "!="); differs && (!ok || len(other) > len(value)) {
		value = other
	}
	value = strings.TrimSpace(value)
	switch {
	case len(value) > 1 && strings.HasPrefix(value, "/") && strings.HasSuffix(value, "/"):
		return "regular expressions (/.../)"
	case strings.Contains(value, "*"):
		return "globs (*)"
	}
	return ""
}

func (v *Validator) placement(r *Report, field string, p *musterv1.Placement) {
	if p == nil {
		return
	}
	const most = 128
	if len(p.Constraints) > most {
		r.Invalid(field+".constraints", "has %d entries; at most %d are allowed", len(p.Constraints), most)
		return
	}
	for i, c := range p.Constraints {
		if err := v.constraints([]string{c}); err != nil {
			r.Invalid(Indexed(field+".constraints", i), "%v", err)
		} else if pattern := constraintPattern(c); pattern != "" {
			r.Unimplemented(Indexed(field+".constraints", i), fmt.Sprintf("%s are not implemented yet: give the whole value, or several constraints with !=", pattern))
		}
	}
	if len(p.Platforms) > most {
		r.Invalid(field+".platforms", "has %d entries; at most %d are allowed", len(p.Platforms), most)
	}
	for i, pref := range p.Preferences {
		at := Indexed(field+".preferences", i) + ".spread.spreadDescriptor"
		d := pref.GetSpread().GetSpreadDescriptor()
		node, okNode := strings.CutPrefix(d, "node.labels.")
		engine, okEngine := strings.CutPrefix(d, "engine.labels.")
		if (!okNode || node == "") && (!okEngine || engine == "") {
			r.Invalid(at, `must be "node.labels.X" or "engine.labels.X"`)
		}
	}
	checkCount(r, field+".maxReplicas", p.MaxReplicas)
}
