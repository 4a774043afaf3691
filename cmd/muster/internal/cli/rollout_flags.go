package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// rolloutScalars are the flags that say how tasks are replaced by an update, and
// by a rollback.
func rolloutScalars() []scalar {
	update := func(s *musterv1.ServiceSpec) **musterv1.UpdateConfig { return &s.Update }
	rollback := func(s *musterv1.ServiceSpec) **musterv1.UpdateConfig { return &s.Rollback }
	return append(
		rolloutScalarsOf("update", "pause, continue or rollback", update),
		rolloutScalarsOf("rollback", "pause or continue", rollback)...)
}

func rolloutScalarsOf(name, actions string, of func(*musterv1.ServiceSpec) **musterv1.UpdateConfig) []scalar {
	set := func(set func(*musterv1.UpdateConfig, string) error) func(string, *musterv1.ServiceSpec) error {
		return func(v string, s *musterv1.ServiceSpec) error {
			u := of(s)
			if *u == nil {
				// What holds for a service that does not say.
				*u = &musterv1.UpdateConfig{Parallelism: 1}
			}
			return set(*u, v)
		}
	}
	span := func(field func(*musterv1.UpdateConfig) **durationpb.Duration) func(string, *musterv1.ServiceSpec) error {
		return set(func(u *musterv1.UpdateConfig, v string) error {
			d, err := time.ParseDuration(v)
			if err != nil || d < 0 {
				return fmt.Errorf("invalid duration %q: want a time such as 10s or 1m30s", v)
			}
			*field(u) = durationpb.New(d)
			return nil
		})
	}
	return []scalar{
		{name + "-parallelism", "tasks replaced at once; 0: all (default 1)", set(func(u *musterv1.UpdateConfig, v string) (err error) {
			u.Parallelism, err = count(v, 64)
			return err
		})},
		{name + "-delay", "wait between a task that runs and the next (default 0s)", span(func(u *musterv1.UpdateConfig) **durationpb.Duration { return &u.Delay })},
		{name + "-monitor", "for how long a failure of a new task counts (default 5s)", span(func(u *musterv1.UpdateConfig) **durationpb.Duration { return &u.Monitor })},
		{name + "-failure-action", "when too many have failed: " + actions + " (default pause)", set(func(u *musterv1.UpdateConfig, v string) error {
			a, ok := musterv1.UpdateConfig_FailureAction_value[strings.ToUpper(v)]
			if !ok || a == 0 || !strings.Contains(actions, strings.ToLower(v)) {
				return fmt.Errorf("%q: want one of %s", v, actions)
			}
			u.FailureAction = musterv1.UpdateConfig_FailureAction(a)
			return nil
		})},
		{name + "-max-failure-ratio", "share of failed tasks that is tolerated, 0 to 1 (default 0)", set(func(u *musterv1.UpdateConfig, v string) error {
			f, err := strconv.ParseFloat(v, 32)
			if err != nil || math.IsNaN(f) || f < 0 || f > 1 {
				return fmt.Errorf("%q: want a number from 0 to 1", v)
			}
			u.MaxFailureRatio = float32(f)
			return nil
		})},
		{name + "-order", "stop-first or start-first (default stop-first)", set(func(u *musterv1.UpdateConfig, v string) error {
			o, ok := musterv1.UpdateConfig_Order_value[strings.ToUpper(strings.ReplaceAll(v, "-", "_"))]
			if !ok || o == 0 {
				return fmt.Errorf("%q is neither stop-first nor start-first", v)
			}
			u.Order = musterv1.UpdateConfig_Order(o)
			return nil
		})},
	}
}
