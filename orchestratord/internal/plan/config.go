package plan

import (
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// defaultMonitor is for how long a new task is watched if nobody says.
const defaultMonitor = 5 * time.Second

// config is an update config with its defaults.
type config struct {
	parallelism    uint64 // 0: no limit
	delay, monitor int64  // in milliseconds
	ratio          float32
	action         musterv1.UpdateConfig_FailureAction
	startFirst     bool
}

// configOf returns how tasks are replaced now. A rollback, whoever asked for it,
// goes by what the spec that is left says of rollbacks: whoever wrote that spec
// could think of both.
func configOf(s *recordv1.Service, r *recordv1.Rollout) config {
	u := s.GetSpec().GetUpdate()
	switch {
	case s.GetRollsBack():
		u = s.GetPreviousSpec().GetRollback()
	case r.GetRolledBack():
		u = s.GetSpec().GetRollback()
	}
	if u == nil {
		u = &musterv1.UpdateConfig{Parallelism: 1}
	}
	c := config{
		parallelism: u.Parallelism, delay: u.GetDelay().AsDuration().Milliseconds(), monitor: defaultMonitor.Milliseconds(),
		ratio: u.MaxFailureRatio, action: u.FailureAction,
		startFirst: u.Order == musterv1.UpdateConfig_START_FIRST,
	}
	if u.Monitor != nil {
		c.monitor = u.Monitor.AsDuration().Milliseconds()
	}
	if c.action == musterv1.UpdateConfig_FAILURE_ACTION_UNSPECIFIED {
		c.action = musterv1.UpdateConfig_PAUSE
	}
	return c
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
