package state

import (
	"bytes"
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// EndpointDigest identifies an endpoint spec by its content. It is empty for a service
// without published ports, so that most tasks need no digest.
func EndpointDigest(e *musterv1.EndpointSpec) ([]byte, error) {
	if len(e.GetPorts()) == 0 && e.GetMode() != musterv1.EndpointSpec_DNSRR {
		return nil, nil
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(e)
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
