package state

import (
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// EndpointDigest names what a service publishes, by its content. It is empty
// for a service that publishes nothing, so that most tasks need not carry one.
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
