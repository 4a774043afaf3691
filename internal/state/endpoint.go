package state

import (
	"bytes"
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// EndpointDigest identifies what an endpoint spec has its tasks be created with: their
// ports in mode HOST, and whether they are on the ingress network. All else about an
// endpoint changes under running tasks. It is empty for a spec that asks nothing of the
// tasks, so that most need no digest.
func EndpointDigest(e *musterv1.EndpointSpec) ([]byte, error) {
	own := &musterv1.EndpointSpec{}
	for _, p := range e.GetPorts() {
		if !IsIngress(p) {
			own.Ports = append(own.Ports, p)
		}
	}
	if PublishesIngress(e) {
		own.Ports = append(own.Ports, &musterv1.PortConfig{PublishMode: musterv1.PortConfig_INGRESS})
	}
	if len(own.Ports) == 0 {
		return nil, nil
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(own)
	if err != nil {
		return nil, fmt.Errorf("digest of endpoint spec: %w", err)
	}
	sum := sha256.Sum256(b)
	return sum[:8], nil
}

// Published returns the endpoint spec of a task by the digest that the task was created
// with: the service's present or former endpoint spec.
func Published(s *recordv1.Service, digest []byte) *musterv1.EndpointSpec {
	present := s.GetSpec().GetEndpoint()
	if d, err := EndpointDigest(present); err == nil && bytes.Equal(d, digest) {
		return present
	}
	if d, err := EndpointDigest(s.GetFormerEndpoint()); err == nil && bytes.Equal(d, digest) {
		return s.GetFormerEndpoint()
	}
	return present
}
