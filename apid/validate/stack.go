package validate

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/dependency"
)

const (
	// MaxStack is the greatest encoded size of a stack's spec. A gRPC message has at most
	// 4 MiB.
	MaxStack = 3 << 20
	// MaxStackMessage is the greatest length of the message of a revision.
	MaxStackMessage = 1000
	// maxStackObjects bounds how many services, networks, configs or secrets a stack has.
	maxStackObjects = 1000
	// digestKeyLength is the length of the key of a stack's digests.
	digestKeyLength = 32
)

// Stack checks the whole spec of a stack, and the message of its revision.
func (v *Validator) Stack(spec *musterv1.StackSpec, message string, catalog *Catalog) error {
	r := &Report{}
	if len(message) > MaxStackMessage {
		r.Invalid("message", "has %d bytes; at most %d are allowed", len(message), MaxStackMessage)
	}
	if spec == nil {
		r.Invalid("spec", "is required")
		return r.Err()
	}
	if size := proto.Size(spec); size > MaxStack {
		r.Invalid("spec", "has %d bytes when encoded; at most %d are allowed", size, MaxStack)
		return r.Err()
	}
	switch {
	case spec.Name == "":
		r.Invalid("spec.name", "is required")
	case len(spec.Name) > MaxName:
		r.Invalid("spec.name", "has %d characters; at most %d are allowed", len(spec.Name), MaxName)
	case !v.pattern.stackName.MatchString(spec.Name):
		r.Invalid("spec.name", `must consist of lower-case letters, digits, "-" and "_", and begin with a letter or digit`)
	}
	checkLabels(r, "spec.labels", spec.Labels)
	if n := len(spec.DigestKey); n != 0 && n != digestKeyLength {
		r.Invalid("spec.digestKey", "has %d bytes; want %d, or none", n, digestKeyLength)
	}
	checkStackObjects(r, "spec.services", spec.Name, spec.Services, func(s *musterv1.ServiceSpec) *Report { return v.service(s, catalog) })
	checkStackObjects(r, "spec.networks", spec.Name, spec.Networks, func(n *musterv1.NetworkSpec) *Report { return v.network(n, catalog) })
	checkStackObjects(r, "spec.configs", spec.Name, spec.Configs, func(c *musterv1.ConfigSpec) *Report { return v.config(c, true) })
	// The data of secrets is not kept, so it may be left out.
	checkStackObjects(r, "spec.secrets", spec.Name, spec.Secrets, func(s *musterv1.SecretSpec) *Report { return v.secret(s, false) })
	checkStackCycle(r, spec.Services)
	return r.Err()
}

// stackObject is the spec of an object of a stack.
type stackObject interface {
	GetName() string
	GetLabels() map[string]string
}

func checkStackObjects[S stackObject](r *Report, field, stack string, specs []S, check func(S) *Report) {
	if len(specs) > maxStackObjects {
		r.Invalid(field, "has %d entries; at most %d are allowed", len(specs), maxStackObjects)
		return
	}
	seen := map[string]int{}
	for i, s := range specs {
		at := Indexed(field, i)
		r.include(at, check(s))
		name := strings.ToLower(s.GetName())
		switch first, twice := seen[name]; {
		case name == "":
			// Services and secrets may lack a name elsewhere.
			if !slices.ContainsFunc(r.invalid, func(v Violation) bool { return v.Field == at+".name" }) {
				r.Invalid(at+".name", "is required")
			}
		case twice:
			r.Invalid(at+".name", "%q is the name of %s already; names are compared without regard to case", s.GetName(), Indexed(field, first))
		default:
			seen[name] = i
		}
		if stack != "" && s.GetLabels()[musterv1.StackLabel] != stack {
			r.Invalid(keyed(at+".labels", musterv1.StackLabel), "must be the stack's name, %q", short(stack))
		}
	}
}

// checkStackCycle refuses services that wait for each other.
func checkStackCycle(r *Report, services []*musterv1.ServiceSpec) {
	index := map[string]int{}
	for i, s := range services {
		index[dependency.Fold(s.GetName())] = i
	}
	const underWay, done = 1, 2
	state := make([]int, len(services))
	var path []string
	var visit func(i int) bool
	visit = func(i int) bool {
		switch state[i] {
		case done:
			return false
		case underWay:
			path = append(path, services[i].GetName())
			return true
		}
		state[i] = underWay
		path = append(path, services[i].GetName())
		for _, d := range services[i].GetDependsOn() {
			if next, ok := index[dependency.Fold(d.GetService())]; ok && visit(next) {
				return true
			}
		}
		state[i], path = done, path[:len(path)-1]
		return false
	}
	for i := range services {
		if visit(i) {
			last := path[len(path)-1]
			cycle := path[slices.IndexFunc(path, func(name string) bool { return strings.EqualFold(name, last) }):]
			at := index[dependency.Fold(last)]
			r.Invalid(Indexed("spec.services", at)+".dependsOn", "services must not wait for each other: %s; remove one of these dependencies", strings.Join(cycle, " -> "))
			return
		}
	}
}
