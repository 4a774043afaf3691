package workerd

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/bounds"
)

// assembled is the description of a node in the making.
type assembled struct {
	base      *musterv1.NodeDescription
	executors []*musterv1.ExecutorDescription
	// generic are the resources that each executor adds.
	generic [][]*musterv1.GenericResource
	// withheld says by name which executors exceed a limit, and why.
	withheld map[string]string
}

// assemble returns the description of a node with its executors, and by name which of
// them are withheld and why. Together they keep to the limits of a dispatcher, which
// would refuse the node otherwise; only the base itself may exceed them. Mark is
// called with a copy of the description of each executor.
func assemble(base *musterv1.NodeDescription, all []*executor.Described, mark func(*musterv1.ExecutorDescription)) (*musterv1.NodeDescription, map[string]string) {
	a := &assembled{base: base, withheld: map[string]string{}}
	reported := all[:min(len(all), nodereport.MaxExecutors)]
	resources := len(base.GetResources().GetGeneric())
	for i, e := range reported {
		d := proto.CloneOf(e.Description)
		mark(d)
		generic := e.Resources.GetGeneric()
		a.executors, a.generic = append(a.executors, d), append(a.generic, generic)
		if e.Excess != nil {
			a.withheld[d.Name] = e.Excess.Error()
		} else if n := resources + len(generic); len(generic) > 0 && n > nodereport.MaxGenericResources {
			a.withhold(i, fmt.Errorf("resources.generic has %d entries, %d with those of the node and of the executors before it; at most %d are allowed",
				len(generic), n, nodereport.MaxGenericResources))
		} else {
			resources = n
		}
	}
	if left := all[len(reported):]; len(left) > 0 {
		a.leaveOut(left)
	}
	for {
		node := a.node()
		size := proto.Size(node)
		if size <= nodereport.MaxDescription {
			return node, a.withheld
		}
		i := a.largest()
		if i < 0 {
			return node, a.withheld
		}
		a.withhold(i, fmt.Errorf("description has %d bytes, %d of them in payload_schema, and that of the whole node %d; at most %d are allowed",
			a.size(i), len(a.executors[i].PayloadSchema), size, nodereport.MaxDescription))
	}
}

// node returns the description as it is now.
func (a *assembled) node() *musterv1.NodeDescription {
	node := proto.CloneOf(a.base)
	node.Executors = a.executors
	for _, generic := range a.generic {
		node.Resources.Generic = append(node.Resources.Generic, generic...)
	}
	return node
}

// withhold replaces the description of an executor.
func (a *assembled) withhold(i int, why error) {
	a.executors[i], a.generic[i] = executor.Withheld(a.executors[i], why), nil
	a.withheld[a.executors[i].Name] = why.Error()
}

// leaveOut notes that executors have no place in the description. The message of the
// last one that has a place names them.
func (a *assembled) leaveOut(left []*executor.Described) {
	why := fmt.Sprintf("node has %d executors; at most %d are allowed", len(a.executors)+len(left), nodereport.MaxExecutors)
	names := make([]string, len(left))
	for i, e := range left {
		names[i] = e.Description.Name
		a.withheld[e.Description.Name] = why
	}
	last := a.executors[len(a.executors)-1]
	message := fmt.Sprintf("%s, and these are not reported: %s", why, strings.Join(names, ", "))
	if last.Message != "" {
		message = last.Message + "; " + message
	}
	last.Message = bounds.Text(message, nodereport.MaxExecutorMessage)
}

// size returns how many bytes an executor takes of the description.
func (a *assembled) size(i int) int {
	return proto.Size(a.executors[i]) + proto.Size(&musterv1.Resources{Generic: a.generic[i]})
}

// largest returns the executor that takes the most bytes, the last one of several, and
// -1 if none has anything to withhold.
func (a *assembled) largest() int {
	largest, most := -1, 0
	for i, e := range a.executors {
		bare := len(e.Kinds)+len(e.Capabilities)+len(e.PayloadSchema)+len(a.generic[i]) == 0
		if n := a.size(i); !bare && n >= most {
			largest, most = i, n
		}
	}
	return largest
}
