package plan

import (
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
)

// config is an update config with its defaults.
type config struct {
	parallelism    uint64 // 0: no limit
	delay, monitor int64  // in milliseconds
	ratio          float32
	action         musterv1.UpdateConfig_FailureAction
	startFirst     bool
}

// configOf returns how tasks are replaced now. A rollback always
// goes by what the spec that is left says of rollbacks: its author could think of
// both.
func configOf(s *recordv1.Service, r *recordv1.Rollout) config {
	u := s.GetSpec().GetUpdate()
	switch {
	case s.GetRollsBack():
		u = s.GetPreviousSpec().GetRollback()
	case r.GetRolledBack():
		u = s.GetSpec().GetRollback()
	}
	return config{
		parallelism: defaults.Parallelism(u), delay: u.GetDelay().AsDuration().Milliseconds(), monitor: defaults.Monitor(u).Milliseconds(),
		ratio: u.GetMaxFailureRatio(), action: defaults.FailureAction(u),
		startFirst: defaults.Order(u) == musterv1.UpdateConfig_START_FIRST,
	}
}

// watches reports whether failures are of any consequence.
func (c config) watches() bool { return c.action != musterv1.UpdateConfig_CONTINUE }

// tooMany reports whether more slots have failed than is tolerated.
func (c config) tooMany(failures, slots uint64) bool {
	return c.watches() && failures > 0 && float32(failures)/float32(max(slots, failures)) > c.ratio
}

// underWay reports whether slots are given their turn.
func underWay(r *recordv1.Rollout) bool {
	return r.GetState() == musterv1.UpdateStatus_UPDATING || r.GetState() == musterv1.UpdateStatus_ROLLBACK_STARTED
}

func completed(r *recordv1.Rollout) bool {
	return r.GetState() == musterv1.UpdateStatus_COMPLETED || r.GetState() == musterv1.UpdateStatus_ROLLBACK_COMPLETED
}
