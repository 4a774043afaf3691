package state

import (
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Followed is what the tasks of a service are made of.
type Followed struct {
	Digest   []byte
	Version  uint64
	Endpoint *musterv1.EndpointSpec
}

// Follow returns what the tasks of a service should follow in the end: its spec, or
// the former one if the update to it was rolled back.
func Follow(s *recordv1.Service, r *recordv1.Rollout) Followed {
	if r.GetRolledBack() && Answers(s, r) {
		return Followed{s.FormerTaskDigest, s.FormerSpecVersion, s.FormerEndpoint}
	}
	return Followed{s.GetTaskDigest(), s.GetSpecVersion(), s.GetSpec().GetEndpoint()}
}

// Answers reports whether a rollout is that of what the user last asked for. A
// new attempt does not disturb one that is under way, or has come to its end.
func Answers(s *recordv1.Service, r *recordv1.Rollout) bool {
	switch {
	case r.GetSpecVersion() != s.GetSpecVersion():
		return false
	case r.GetAttempt() == s.GetAttempt():
		return true
	default:
		return !Stuck(r)
	}
}

// Stuck reports whether tasks do not follow the spec that a rollout was to bring
// them to, and will not do so by themselves: it has paused, or was rolled back.
func Stuck(r *recordv1.Rollout) bool {
	switch r.GetState() {
	case musterv1.UpdateStatus_PAUSED, musterv1.UpdateStatus_ROLLBACK_PAUSED:
		return true
	default:
		return r.GetRolledBack()
	}
}
