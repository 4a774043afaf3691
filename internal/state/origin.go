package state

import recordv1 "github.com/musterhq/muster/api/muster/record/v1"

// Origin identifies what a task was created from: the digests of its task spec and of its
// service's endpoint spec ([Digest], [EndpointDigest]). The endpoint is included because a
// task keeps the ports that it was started with, which are not part of the task spec.
type Origin struct{ Spec, Endpoint string }

// OriginOf returns the origin of a task.
func OriginOf(t *recordv1.Task) Origin {
	return Origin{Spec: string(t.GetSpecDigest()), Endpoint: string(t.GetEndpointDigest())}
}
