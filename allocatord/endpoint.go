package allocatord

import (
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
)

// errIngress says why a service that wants the routing mesh has no endpoint.
const errIngress = "ports of publish mode ingress are not supported by this version; use publish mode host"

// endpoint returns the record that a service should have, or nil if it
// publishes nothing. It is a pure function of the service: ports of publish
// mode host are held by nodes, each for the tasks that run there, so there is no
// pool to take them from. One without a number is chosen by the node, and shows
// in the task's status.
func endpoint(s *recordv1.Service) *recordv1.Endpoint {
	spec := s.GetSpec().GetEndpoint()
	if len(spec.GetPorts()) == 0 {
		return nil
	}
	e := &recordv1.Endpoint{Endpoint: &musterv1.Endpoint{Spec: spec}}
	for _, p := range spec.GetPorts() {
		if p.PublishMode != musterv1.PortConfig_HOST {
			e.Error = errIngress
			continue
		}
		p = proto.CloneOf(p)
		p.Protocol = defaults.Protocol(p)
		e.Endpoint.Ports = append(e.Endpoint.Ports, p)
	}
	return e
}
