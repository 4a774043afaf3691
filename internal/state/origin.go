package state

import recordv1 "github.com/musterhq/muster/api/muster/record/v1"

// Origin is what a task is created from: the digests of its task spec and of its
// service's endpoint spec ([Digest], [EndpointDigest]). Ports are no part of the task
// spec, and yet a task keeps those that it started with.
type Origin struct{ Spec, Endpoint string }

// OriginOf returns what a task was created from.
func OriginOf(t *recordv1.Task) Origin {
	return Origin{Spec: string(t.GetSpecDigest()), Endpoint: string(t.GetEndpointDigest())}
}

// Origin returns what new tasks are created from.
func (f Effective) Origin() (Origin, error) {
	endpoint, err := EndpointDigest(f.Endpoint)
	if err != nil {
		return Origin{}, err
	}
	return Origin{Spec: string(f.Digest), Endpoint: string(endpoint)}, nil
}
