package validate

import (
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/payload"
	"github.com/musterhq/muster/internal/state"
)

// Validator checks specs. It may be used by many goroutines.
type Validator struct {
	pattern     patterns
	constraints func([]string) error
	gaps        map[string][]gap
	schemas     *payload.Schemas
}

// New returns a validator. Constraints parses placement constraints, all of
// them, and says what is wrong with them; it is the scheduler's own parser, so
// that what is accepted can be placed.
func New(constraints func([]string) error) *Validator {
	return &Validator{
		pattern: newPatterns(), constraints: constraints, gaps: indexGaps(serviceGaps()), schemas: payload.NewSchemas(),
	}
}

// Service checks a service's spec against what the executors of the catalog
// can run, and returns a gRPC status that names all that is wrong.
func (v *Validator) Service(spec *musterv1.ServiceSpec, catalog *Catalog) error {
	return v.service(spec, catalog).Err()
}

func (v *Validator) service(spec *musterv1.ServiceSpec, catalog *Catalog) *Report {
	r := &Report{}
	if spec == nil {
		r.Invalid("spec", "is required")
		return r
	}
	walk(spec.ProtoReflect(), "spec", "", func(path, shape string, fd protoreflect.FieldDescriptor, value protoreflect.Value) {
		wellFormed(r, path, fd, value)
		for _, g := range v.gaps[shape] {
			g.report(r, path, value)
		}
	})
	// A service without a name gets one, or keeps the one it has.
	if spec.Name != "" {
		v.pattern.checkName(r, "spec.name", spec.Name)
	}
	checkLabels(r, "spec.labels", spec.Labels)
	checkMode(r, spec)
	checkUpdate(r, "spec.update", spec.Update)
	checkUpdate(r, "spec.rollback", spec.Rollback)
	if spec.GetRollback().GetFailureAction() == musterv1.UpdateConfig_ROLLBACK {
		r.Invalid("spec.rollback.failureAction", "must be PAUSE or CONTINUE: a rollback is not rolled back")
	}
	checkEndpoint(r, "spec.endpoint", spec.Endpoint)
	v.checkDependencies(r, spec)
	if spec.Task == nil {
		r.Invalid("spec.task", "is required")
		return r
	}
	if size := proto.Size(spec.Task); size > MaxTaskSpec {
		r.Invalid("spec.task", "has %d bytes when encoded; at most %d are allowed", size, MaxTaskSpec)
		return r
	}
	v.task(r, "spec.task", spec.Task, catalog)
	v.files(r, "spec.task", spec.Task)
	v.templates(r, spec)
	v.reach(r, spec, catalog)
	return r
}

// maxDependencies bounds how many services one may depend on.
const maxDependencies = 64

func (v *Validator) checkDependencies(r *Report, spec *musterv1.ServiceSpec) {
	const field = "spec.dependsOn"
	if n := len(spec.DependsOn); n > maxDependencies {
		r.Invalid(field, "has %d entries; at most %d are allowed", n, maxDependencies)
		return
	}
	seen := map[string]int{}
	for i, d := range spec.DependsOn {
		at := Indexed(field, i) + ".service"
		name := strings.ToLower(d.Service)
		first, twice := seen[name]
		switch {
		case d.Service == "":
			r.Invalid(at, "is required: the name of a service")
		case strings.EqualFold(d.Service, spec.Name):
			r.Invalid(at, "is the service itself: name another service")
		case twice:
			r.Invalid(at, "%q is named by %s already", d.Service, Indexed(field, first))
		default:
			v.pattern.checkName(r, at, d.Service)
		}
		seen[name] = i
	}
}

func checkMode(r *Report, spec *musterv1.ServiceSpec) {
	switch m := spec.Mode.(type) {
	case *musterv1.ServiceSpec_Replicated:
		checkCount(r, "spec.replicated.replicas", m.Replicated.GetReplicas())
	case *musterv1.ServiceSpec_ReplicatedJob:
		checkCount(r, "spec.replicatedJob.maxConcurrent", m.ReplicatedJob.GetMaxConcurrent())
		checkCount(r, "spec.replicatedJob.totalCompletions", m.ReplicatedJob.GetTotalCompletions())
	}
	_, replicatedJob := spec.Mode.(*musterv1.ServiceSpec_ReplicatedJob)
	_, globalJob := spec.Mode.(*musterv1.ServiceSpec_GlobalJob)
	if (replicatedJob || globalJob) && spec.Update != nil {
		r.Invalid("spec.update", "jobs have no update config")
	}
}

// Replicas checks a number of replicas by itself.
func Replicas(field string, n uint64) error {
	var r Report
	checkCount(&r, field, n)
	return r.Err()
}

func checkCount(r *Report, field string, n uint64) {
	switch {
	case n > 1<<63-1:
		// What a client made of a negative number.
		r.Invalid(field, "must not be negative")
	case n > MaxReplicas:
		r.Invalid(field, "is %d; at most %d are allowed", n, MaxReplicas)
	}
}

func checkUpdate(r *Report, field string, u *musterv1.UpdateConfig) {
	if u == nil {
		return
	}
	// The comparison is written so that it refuses NaN.
	if !(u.MaxFailureRatio >= 0 && u.MaxFailureRatio <= 1) {
		r.Invalid(field+".maxFailureRatio", "must be from 0 to 1")
	}
	checkCount(r, field+".parallelism", u.Parallelism)
}

func checkEndpoint(r *Report, field string, e *musterv1.EndpointSpec) {
	if e == nil {
		return
	}
	if len(e.Ports) > maxList {
		r.Invalid(field+".ports", "has %d entries; at most %d are allowed", len(e.Ports), maxList)
		return
	}
	if d := e.DrainDelay; d.IsValid() && d.AsDuration() > MaxDrainDelay {
		r.Invalid(field+".drainDelay", "is %v; at most %v are allowed", d.AsDuration(), MaxDrainDelay)
	}
	type published struct {
		port     uint32
		protocol musterv1.PortConfig_Protocol
	}
	seen := map[published]int{}
	for i, p := range e.Ports {
		at := Indexed(field+".ports", i)
		if len(p.Name) > MaxName {
			r.Invalid(at+".name", "has %d characters; at most %d are allowed", len(p.Name), MaxName)
		}
		if p.TargetPort < 1 || p.TargetPort > 65535 {
			r.Invalid(at+".targetPort", "is %d; must be from 1 to 65535", p.TargetPort)
		}
		if p.PublishedPort > 65535 {
			r.Invalid(at+".publishedPort", "is %d; must be at most 65535", p.PublishedPort)
		}
		if p.ExternalTraffic != musterv1.PortConfig_EXTERNAL_TRAFFIC_UNSPECIFIED && !state.IsIngress(p) {
			r.Invalid(at+".externalTraffic", "is for ports in mode INGRESS only; a port in mode HOST always leads to the task on its node")
		}
		if p.ProxyProtocol && (!state.IsIngress(p) || p.Protocol == musterv1.PortConfig_UDP || p.Protocol == musterv1.PortConfig_SCTP) {
			r.Invalid(at+".proxyProtocol", "is for TCP ports in mode INGRESS only; a port in mode HOST leads to the task on its node, which sees the client's address")
		}
		if e.Mode == musterv1.EndpointSpec_DNSRR && state.IsIngress(p) {
			r.Invalid(at+".publishMode", "ports of a service with endpoint mode DNSRR can only be published in mode HOST")
		}
		if p.PublishedPort == 0 {
			continue
		}
		key := published{p.PublishedPort, defaults.Protocol(p)}
		if first, taken := seen[key]; taken {
			r.Invalid(at+".publishedPort", "%s/%s is already published by %s",
				strconv.Itoa(int(key.port)), strings.ToLower(key.protocol.String()), Indexed(field+".ports", first))
			continue
		}
		seen[key] = i
	}
}
