package state

import (
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Effective describes what new tasks of a service are created from.
type Effective struct {
	Digest   []byte
	Version  uint64
	Endpoint *musterv1.EndpointSpec
}

// EffectiveSpec returns the spec that all tasks of a service should have in the end: the
// service's spec, or the former one if the update was rolled back.
func EffectiveSpec(s *recordv1.Service, r *recordv1.Rollout) Effective {
	if r.GetRolledBack() && IsCurrent(s, r) {
		return Effective{s.FormerTaskDigest, s.FormerSpecVersion, s.FormerEndpoint}
	}
	return Effective{s.GetTaskDigest(), s.GetSpecVersion(), s.GetSpec().GetEndpoint()}
}

// IsCurrent reports whether a rollout is for the service's current spec version and
// attempt. A new attempt does not affect a rollout that is running or has completed.
func IsCurrent(s *recordv1.Service, r *recordv1.Rollout) bool {
	switch {
	case r.GetSpecVersion() != s.GetSpecVersion():
		return false
	case r.GetAttempt() == s.GetAttempt():
		return true
	default:
		return !Halted(r)
	}
}

// Halted reports whether a rollout has paused or was rolled back. Tasks then do not get
// the new spec without another attempt.
func Halted(r *recordv1.Rollout) bool {
	switch r.GetState() {
	case musterv1.UpdateStatus_PAUSED, musterv1.UpdateStatus_ROLLBACK_PAUSED:
		return true
	default:
		return r.GetRolledBack()
	}
}
