package state

import (
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Effective is what new tasks of a service are created from.
type Effective struct {
	Digest   []byte
	Version  uint64
	Endpoint *musterv1.EndpointSpec
}

// EffectiveSpec returns what the tasks of a service should follow in the end: its spec,
// or the former one if the update to it was rolled back.
func EffectiveSpec(s *recordv1.Service, r *recordv1.Rollout) Effective {
	if r.GetRolledBack() && IsCurrent(s, r) {
		return Effective{s.FormerTaskDigest, s.FormerSpecVersion, s.FormerEndpoint}
	}
	return Effective{s.GetTaskDigest(), s.GetSpecVersion(), s.GetSpec().GetEndpoint()}
}

// IsCurrent reports whether a rollout is for the service's current spec version and
// attempt. A new attempt does not disturb a rollout that is under way or has ended.
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

// Halted reports whether a rollout has paused or was rolled back: tasks do not follow
// the spec that it leads to, and will not without another attempt.
func Halted(r *recordv1.Rollout) bool {
	switch r.GetState() {
	case musterv1.UpdateStatus_PAUSED, musterv1.UpdateStatus_ROLLBACK_PAUSED:
		return true
	default:
		return r.GetRolledBack()
	}
}
