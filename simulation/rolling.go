package simulation

import (
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// roll has users say how their services are updated, and roll some back. One seed in
// three says nothing of it: its tasks are all replaced at once. The draws are its
// own, so that they change nothing of the rest of a script.
func (s *Script) roll(size Size) {
	r := rand.New(rand.NewPCG(s.Seed, 3<<32))
	if one(r, 3) {
		return
	}
	var back []Step
	for i := range s.Steps {
		at := &s.Steps[i]
		if at.Spec == nil {
			continue
		}
		if !one(r, 6) {
			at.Spec.Update = rollConfig(r, size, at.Spec.Update.GetOrder())
		}
		if !one(r, 3) {
			at.Spec.Rollback = rollConfig(r, size, at.Spec.Update.GetOrder())
			if at.Spec.Rollback.FailureAction == musterv1.UpdateConfig_ROLLBACK {
				// A rollback is not rolled back.
				at.Spec.Rollback.FailureAction = musterv1.UpdateConfig_PAUSE
			}
		}
		if at.Op != update || !one(r, 4) {
			continue
		}
		b := Step{At: at.At + between(r, 50*time.Millisecond, 8*time.Second), Op: rollBack, Who: at.Who, Client: at.Client}
		b.API = replica("apid", 1+r.IntN(size.Managers))
		if b.At < size.Length {
			back = append(back, b)
		}
	}
	s.Steps = append(s.Steps, back...)
}

// rollConfig draws how tasks are replaced. A large service has its turns in a few
// dozen parts, as a small one has, so that a cluster comes to rest in time.
func rollConfig(r *rand.Rand, size Size, order musterv1.UpdateConfig_Order) *musterv1.UpdateConfig {
	parts := uint64(max(size.Replicas, size.Workers)/20 + 1)
	u := &musterv1.UpdateConfig{
		Order:           order,
		Parallelism:     parts * pick(r, []uint64{0, 1, 1, 2, 3}),
		Delay:           durationpb.New(pick(r, []time.Duration{0, 0, 300 * time.Millisecond, 2 * time.Second})),
		FailureAction:   musterv1.UpdateConfig_FailureAction(r.IntN(4)),
		MaxFailureRatio: pick(r, []float32{0, 0, 0.3, 1}),
	}
	if !one(r, 3) {
		u.Monitor = durationpb.New(pick(r, []time.Duration{0, 2 * time.Second, 15 * time.Second}))
	}
	return u
}

// describeRoll tells of it in few words.
func describeRoll(u *musterv1.UpdateConfig) string {
	return fmt.Sprintf("%d at once, %v apart, watched for %v, %v over %.1f, %v", u.GetParallelism(), u.GetDelay().AsDuration(),
		u.GetMonitor().AsDuration(), u.GetFailureAction(), u.GetMaxFailureRatio(), u.GetOrder())
}

// rollConfigOf is how a service's tasks are replaced now: as the spec that it rolls
// back from says of rollbacks, if it does, or else as its own says.
func rollConfigOf(s *recordv1.Service, r *recordv1.Rollout) *musterv1.UpdateConfig {
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
	return u
}

// rolls says whether a rollout is in progress.
func rolls(r *recordv1.Rollout) bool {
	return r.GetState() == musterv1.UpdateStatus_UPDATING || r.GetState() == musterv1.UpdateStatus_ROLLBACK_STARTED
}
