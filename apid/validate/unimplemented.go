package validate

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// gap is something that the contract can say and this version does not act on.
type gap struct {
	// shape is the field's path in the spec, without indices.
	shape string
	// what says what is missing, and what to do instead if there is something.
	what string
	// when tells for which values the gap holds; nil means whenever it is set.
	when func(protoreflect.Value) bool
	// sub names a field below shape that is to blame, if it is not set itself.
	sub string
}

// serviceGaps is the table of what a service's spec may contain and Muster does not act on
// yet. A change that builds one of these things deletes its row.
func serviceGaps() []gap {
	gaps := []gap{
		{shape: "replicatedJob", what: "jobs are not implemented yet"},
		{shape: "globalJob", what: "jobs are not implemented yet"},

		{shape: "task.networks[].driverOptions[]", what: "no driver has options for single services yet"},

		{shape: "task.resourceReferences[].type", when: isEnum(musterv1.ResourceReference_VOLUME.Number()), what: "references to volumes are not implemented yet"},
		{shape: "task.resources.reservations.generic[]", what: "generic resources are not implemented yet"},
		{shape: "task.placement.preferences[]", what: "placement preferences are not implemented yet; tasks are always spread over nodes"},

		{shape: "task.container.configs[].runtime", what: "configs for the runtime are not implemented yet"},
		{shape: "task.container.privileges.credentialSpec", what: "credential specs are not implemented yet"},
		{shape: "task.container.mounts[].type", when: isEnum(musterv1.Mount_CLUSTER.Number()), what: "cluster volumes are not implemented yet; use a VOLUME with a volume driver of the nodes"},
		{shape: "task.container.mounts[].type", when: isEnum(musterv1.Mount_NPIPE.Number()), what: "named pipes are those of Windows, and nodes run Linux"},

		{shape: "task", sub: "logDriver", when: genericWithLogDriver, what: "log drivers are for containers only"},
	}
	// What holds for the main container holds for those of a group.
	for _, g := range gaps {
		for _, of := range []string{"container.", "resources."} {
			if rest, ok := strings.CutPrefix(g.shape, "task."+of); ok {
				g.shape = "task.group[]." + of + rest
				gaps = append(gaps, g)
			}
		}
	}
	return gaps
}

// clusterGaps is the same for the cluster's settings.
func clusterGaps() []gap {
	return []gap{
		{shape: "taskDefaults.logDriver", what: "a default log driver is not implemented yet; set it in the services' task specs"},
	}
}

func (g gap) report(r *Report, path string, v protoreflect.Value) {
	if g.when != nil && !g.when(v) {
		return
	}
	if g.sub != "" {
		path += "." + g.sub
	}
	r.Unimplemented(path, g.what)
}

func indexGaps(list []gap) map[string][]gap {
	m := make(map[string][]gap, len(list))
	for _, g := range list {
		m[g.shape] = append(m[g.shape], g)
	}
	return m
}

func isEnum(n protoreflect.EnumNumber) func(protoreflect.Value) bool {
	return func(v protoreflect.Value) bool { return v.Enum() == n }
}

func genericWithLogDriver(v protoreflect.Value) bool {
	t, ok := v.Message().Interface().(*musterv1.TaskSpec)
	return ok && t.GetGeneric() != nil && t.LogDriver != nil
}
