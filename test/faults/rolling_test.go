package faults_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// How the tasks of the service are replaced whose orchestrator dies.
const (
	rollSize   = 8
	rollAtOnce = 2
	rollDelay  = 500 * time.Millisecond
	// rollTries is how many updates there are until two were caught during one.
	rollTries = 10
)

// TestUpdateGoesOn kills the replica of orchestratord during a rolling update,
// each once. The other one continues where it was: each slot has one turn, and never
// more of them at once than the update's parallelism says.
func TestUpdateGoesOn(t *testing.T) {
	r := start(t, cluster.Config{Replicas: 2}, "one", "two")
	b := &bench{Rig: r}
	spec := rig.Processes("wheel", rollSize, rig.Sleep)
	spec.Update = &musterv1.UpdateConfig{Parallelism: rollAtOnce, Delay: durationpb.New(rollDelay), Monitor: durationpb.New(rollDelay)}
	id, err := r.Create(t.Context(), spec)
	ok(t, err)
	wait.Within(t, waitTimeout, "the service runs", func(ctx context.Context) error {
		_, err := r.Running(ctx, id, rollSize)
		return err
	})
	for round, caught := 1, 0; caught < 2; round++ {
		if round > rollTries {
			t.Fatalf("%d of %d orchestrators were killed during an update", caught, rollTries)
		}
		wait.Within(t, waitTimeout, "the shards are shared out", b.even)
		victim := b.owners(t, "orchestratord")[store.ShardOf(id)]
		ok(t, r.Update(t.Context(), id, func(s *musterv1.ServiceSpec) { s.Task.ForceUpdate++ }))
		wait.Within(t, waitTimeout, "two slots are through", func(ctx context.Context) error {
			made, err := b.made(ctx, id)
			through := 0
			for _, task := range made {
				if task.Status.GetState() == musterv1.TaskState_RUNNING {
					through++
				}
			}
			if err == nil && through < 2 {
				err = fmt.Errorf("%d are", through)
			}
			return err
		})
		ok(t, r.Process(victim).Kill())
		killed := time.Now()
		wait.Within(t, waitTimeout, "the update is completed", func(ctx context.Context) error {
			s, err := r.Service(ctx, id)
			if state := s.GetUpdateStatus().GetState(); err == nil && state != musterv1.UpdateStatus_COMPLETED {
				err = fmt.Errorf("it is %v", state)
			}
			return err
		})
		took := time.Since(killed)
		ok(t, r.StartManager(victim))
		wait.Within(t, waitTimeout, "what is said to run does", func(ctx context.Context) error {
			_, err := r.Running(ctx, id, rollSize)
			return errors.Join(err, r.Truthful(ctx))
		})
		made, err := b.made(t.Context(), id)
		ok(t, err)
		ok(t, rig.Turns(made, rollAtOnce, rollDelay))
		slots, later := map[uint64]string{}, 0
		first := took
		for _, task := range made {
			if other := slots[task.Slot]; other != "" {
				t.Errorf("slot %d had tasks %s and %s in the update, want one", task.Slot, other, task.Name)
			}
			slots[task.Slot] = task.Name
			if after := task.Meta.GetCreatedAt().AsTime().Sub(killed); after > 0 {
				later, first = later+1, min(first, after)
			}
		}
		if len(slots) != rollSize {
			t.Errorf("%d slots had their turn, want %d", len(slots), rollSize)
		}
		// On a slow machine it may be seen too late how far an update is.
		if later > 0 {
			caught++
		}
		t.Logf("round %d: %s was killed, the next slot had its turn after %v, and all %d that were left after %v", round, victim, first, later, took)
	}
}

// made returns the tasks of a service's present spec, past ones included.
func (b *bench) made(ctx context.Context, service string) ([]*musterv1.Task, error) {
	s, err := b.Service(ctx, service)
	if err != nil {
		return nil, err
	}
	all, err := b.Tasks(ctx, service)
	var made []*musterv1.Task
	for _, task := range all {
		if task.SpecVersion == s.SpecVersion {
			made = append(made, task)
		}
	}
	if err == nil && len(made) == 0 {
		err = errors.New("no task is of the present spec")
	}
	return made, err
}
