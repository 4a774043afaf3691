package validate

import (
	"regexp"
	"slices"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/taskspec"
)

const (
	// maxGroup bounds the containers of a group: the status of a task has each of them.
	maxGroup = 10
	// maxContainerName bounds the name of a container, which is part of what executors
	// call it.
	maxContainerName = 32
	// maxPostStop bounds how long the end of a task can take.
	maxPostStop = 10 * time.Minute
	mainName    = "main"
)

// containerName is a label of a DNS name in lower case.
var containerName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// group checks the containers beside the main one of a task.
func (v *Validator) group(r *Report, field string, t *musterv1.TaskSpec, catalog *Catalog) {
	if len(t.Group) == 0 {
		return
	}
	if len(t.Group) > maxGroup {
		r.Invalid(field, "has %d entries; at most %d are allowed", len(t.Group), maxGroup)
		return
	}
	kind := placement.Kind(t)
	if o := catalog.offered(kind); o != nil && !o.groups {
		r.Waiting(field, "no node has an executor for tasks of kind %q that runs task groups: upgrade workers and executors, or run the containers as services", short(kind))
	}
	seen := map[string]int{}
	for i, g := range t.Group {
		at := Indexed(field, i)
		switch first, again := seen[g.Name]; {
		case g.Name == "":
			r.Invalid(at+".name", "is required")
		case g.Name == mainName:
			r.Invalid(at+".name", "%q is the main container; choose another name", mainName)
		case len(g.Name) > maxContainerName || !containerName.MatchString(g.Name):
			r.Invalid(at+".name", `%q is not a name: want at most %d lower-case letters, digits and "-", not "-" at either end`, short(g.Name), maxContainerName)
		case again:
			r.Invalid(at+".name", "%q is also the name of %s", g.Name, Indexed(field, first))
		default:
			seen[g.Name] = i
		}
		if g.Role == musterv1.GroupContainer_ROLE_UNSPECIFIED {
			r.Invalid(at+".role", "is required: INIT, SIDECAR or POST_STOP")
		}
		switch {
		case g.Timeout == nil:
		case g.Role != musterv1.GroupContainer_POST_STOP:
			r.Invalid(at+".timeout", "is for containers of role POST_STOP only")
		case g.Timeout.IsValid() && (g.Timeout.AsDuration() <= 0 || g.Timeout.AsDuration() > maxPostStop):
			r.Invalid(at+".timeout", "is %v; must be more than 0 and at most %v", g.Timeout.AsDuration(), maxPostStop)
		}
		v.groupRuntime(r, at, g, kind, catalog)
		v.resources(r, at+".resources", g.Resources)
	}
}

func (v *Validator) groupRuntime(r *Report, at string, g *musterv1.GroupContainer, kind string, catalog *Catalog) {
	switch runtime := g.Runtime.(type) {
	case *musterv1.GroupContainer_Container:
		if runtime.Container == nil {
			r.Invalid(at+".container", "is required")
			return
		}
		v.container(r, at+".container", runtime.Container)
		catalog.checkContainer(r, at+".container", runtime.Container)
		checkShared(r, at+".container", runtime.Container)
	case *musterv1.GroupContainer_Generic:
		v.generic(r, at+".generic", runtime.Generic, catalog)
	default:
		r.Invalid(at, "must have a container or a generic runtime")
		return
	}
	if own := placement.Kind(taskspec.OfGroup(g)); own != kind {
		r.Unimplemented(at, "must have a runtime of kind "+short(kind)+", as the main container; groups of several kinds are not implemented yet")
	}
}

// checkShared refuses what belongs to the network that the containers of a group share.
func checkShared(r *Report, at string, c *musterv1.ContainerSpec) {
	const give = "is shared by all containers of the task; set it in spec.task.container"
	if c.Hostname != "" {
		r.Invalid(at+".hostname", give)
	}
	if len(c.Hosts) > 0 {
		r.Invalid(at+".hosts", give)
	}
	if c.DnsConfig != nil {
		r.Invalid(at+".dnsConfig", give)
	}
}

// runsGroups reports whether an offer includes task groups.
func runsGroups(o *placement.Offer) bool {
	return slices.Contains(o.Capabilities, placement.GroupsCapability)
}
