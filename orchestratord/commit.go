package orchestratord

import (
	"context"
	"errors"
	"fmt"
	"slices"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

// errStale says that the store is not what a decision rests on any more.
var errStale = errors.New("decided on an older state")

// least and most are how many changes of tasks are one update of the store. What
// cannot be written as a whole is halved until it can, so it is a matter of speed
// only: 500 neighbouring task records are some 60 KB, a sixth of a transaction.
// Each update counts all tasks of its service, so that many changes are cut into
// few.
const (
	least = 500
	most  = 2500
)

// commit is a plan to carry out, and what else it rests on.
type commit struct {
	tables  *state.Tables
	service string
	// version is that of the service's record, 0 if it is gone.
	version uint64
	// removed is the version of the record of its removal, 0 if there is none.
	removed uint64
	// rollout is the version of its rollout's record, 0 if there is none.
	rollout uint64
	plan    plan.Plan
	// replicas is how many slots the service should have, if counted.
	replicas uint64
	counted  bool
	// constraints are those of the spec that the service's tasks follow.
	constraints placement.Constraints
	// made are the tasks that the plan makes, if its turns are counted.
	made map[string]bool
}

// run carries the plan out, as far as it still holds. It returns errStale if
// some of it does not.
func (c *commit) run(ctx context.Context, s *store.Store) error {
	var fns []func(*store.Tx) error
	var parts [][]plan.Slot
	if c.plan.Rollout != nil || c.plan.ForgetRollout {
		// What is done to the slots rests on it.
		if err := s.Update(ctx, c.writeRollout); err != nil {
			return fmt.Errorf("write the rollout: %w", err)
		}
	}
	c.countMade()
	for part := range chunks(c.plan.Slots) {
		fns, parts = append(fns, c.writeSlots(part)), append(parts, part)
	}
	var failed error
	for len(fns) > 0 {
		errs := s.UpdateAll(ctx, fns)
		var again []func(*store.Tx) error
		var smaller [][]plan.Slot
		for i, err := range errs {
			if part := parts[i]; errors.Is(err, kv.ErrTooLarge) && len(part) > 1 {
				for _, half := range [][]plan.Slot{part[:len(part)/2], part[len(part)/2:]} {
					again, smaller = append(again, c.writeSlots(half)), append(smaller, half)
				}
			} else if err != nil && (failed == nil || errors.Is(failed, errStale)) {
				failed = err
			}
		}
		fns, parts = again, smaller
	}
	if failed != nil {
		return fmt.Errorf("carry out a plan: %w", failed)
	}
	return nil
}

func (c *commit) countMade() {
	if !c.plan.Bounded {
		return
	}
	c.made = map[string]bool{}
	for _, s := range c.plan.Slots {
		for _, ch := range s.Changes {
			if s.Begins && ch.Record != nil {
				c.made[ch.Key] = true
			}
		}
	}
}

// chunks cuts slots into parts of about as many changes each.
func chunks(slots []plan.Slot) func(yield func([]plan.Slot) bool) {
	return func(yield func([]plan.Slot) bool) {
		chunk := min(max(len(slots)/20, least), most)
		first, changes := 0, 0
		for i, s := range slots {
			changes += len(s.Changes)
			if changes >= chunk || i == len(slots)-1 {
				if !yield(slots[first : i+1]) {
					return
				}
				first, changes = i+1, 0
			}
		}
	}
}

// checkService checks that the service is what was decided on.
func (c *commit) checkService(tx *store.Tx) error {
	if e, _ := c.tables.Services.Get(tx, c.service); e.Version != c.version {
		return errStale
	}
	if c.version != 0 {
		return nil
	}
	// A snapshot may show that the service is gone before it shows the record of its
	// removal, by which its tasks may have to stop after those of other services.
	if e, _ := c.tables.Names.Get(tx, state.RemovedNameKey(c.service)); e.Version != c.removed {
		return errStale
	}
	return nil
}

func (c *commit) writeRollout(tx *store.Tx) error {
	if err := c.checkService(tx); err != nil {
		return err
	}
	if e, _ := c.tables.Rollouts.Get(tx, c.service); e.Version != c.rollout {
		return errStale
	}
	if c.plan.ForgetRollout {
		c.tables.Rollouts.Delete(tx, c.service)
	} else {
		c.tables.Rollouts.Put(tx, c.service, c.plan.Rollout)
	}
	return nil
}

// checkRollout checks that the rollout is the one by which was decided what the
// tasks follow and whose turn it is.
func (c *commit) checkRollout(tx *store.Tx) error {
	e, _ := c.tables.Rollouts.Get(tx, c.service)
	if c.version != 0 && (e.Value.GetNumber() != c.plan.Number || e.Value.GetState() != c.plan.State) {
		return errStale
	}
	return nil
}

// checkTurns checks, where slots begin their turn in an update, that no other replica
// has begun others meanwhile: together they could be more than may be under way.
// Every task that has to do with a turn must be known to who decided, or be made
// by this plan.
func (c *commit) checkTurns(tx *store.Tx, slots []plan.Slot) error {
	if !c.plan.Bounded || !slices.ContainsFunc(slots, func(s plan.Slot) bool { return s.Begins }) {
		return nil
	}
	known := c.plan.Turns
	for e := range c.tables.Tasks.Scan(tx, c.service+"/") {
		if !plan.InTurn(e.Value) {
			continue
		}
		for len(known) > 0 && known[0] < e.Key {
			known = known[1:]
		}
		if (len(known) == 0 || known[0] != e.Key) && !c.made[e.Key] {
			return errStale
		}
	}
	return nil
}

// writeSlots returns an update that changes slots, if each is what was decided
// on and what the slots share is so too.
func (c *commit) writeSlots(slots []plan.Slot) func(*store.Tx) error {
	return func(tx *store.Tx) error {
		if err := c.checkService(tx); err != nil {
			return err
		}
		if err := c.checkRollout(tx); err != nil {
			return err
		}
		if err := c.checkCount(tx, slots); err != nil {
			return err
		}
		if err := c.checkTurns(tx, slots); err != nil {
			return err
		}
		for _, s := range slots {
			if err := c.checkSlot(tx, s); err != nil {
				return err
			}
		}
		for _, s := range slots {
			for _, ch := range s.Changes {
				if ch.Record == nil {
					c.tables.Tasks.Delete(tx, ch.Key)
				} else {
					c.tables.Tasks.Put(tx, ch.Key, ch.Record)
				}
			}
		}
		return nil
	}
}

// checkSlot checks that a slot's tasks are those that were decided on, and that
// nodes that were lost or unfit are so.
func (c *commit) checkSlot(tx *store.Tx, s plan.Slot) error {
	i := 0
	for e := range c.tables.Tasks.Scan(tx, s.Prefix) {
		if i >= len(s.Seen) || s.Seen[i].Key != e.Key || s.Seen[i].Version != e.Version {
			return errStale
		}
		i++
	}
	if i < len(s.Seen) {
		return errStale
	}
	// Tables are followed each for itself: a task may be seen on a node of which
	// it was not known yet that it is back, or that it exists.
	for _, node := range s.Lost {
		if _, condition := readNode(c.tables, tx, node); condition.Keeps() {
			return errStale
		}
	}
	for _, node := range s.Crowded {
		if n, _ := readNode(c.tables, tx, node); n != nil && n.Description != nil && !overcommitted(c.tables, tx, n) && !refusedOn(c.tables, tx, node) {
			return errStale
		}
	}
	if len(s.Unfit) == 0 {
		return nil
	}
	constraints, err := placement.ParseConstraints(s.Constraints)
	if err != nil {
		return fmt.Errorf("constraints of a task: %w", err)
	}
	for _, node := range s.Unfit {
		if n, _ := readNode(c.tables, tx, node); n != nil && constraints.Match(n) {
			return errStale
		}
	}
	return nil
}

// checkCount checks that the service has at most as many slots as it should
// where some are filled, and at least as many where some are given up. The slots
// themselves do not guard this: another replica may have filled or given up
// others.
func (c *commit) checkCount(tx *store.Tx, slots []plan.Slot) error {
	var fills, vacates uint64
	for _, s := range slots {
		if s.Fills {
			fills++
		}
		if s.Vacates {
			vacates++
		}
	}
	if !c.counted || fills+vacates == 0 {
		return nil
	}
	var live, present counter
	for e := range c.tables.Tasks.Scan(tx, c.service+"/") {
		live.add(e.Value, musterv1.TaskState_COMPLETE)
		present.add(e.Value, musterv1.TaskState_SHUTDOWN)
	}
	if fills > 0 && live.slots+fills > c.replicas || vacates > 0 && present.slots < c.replicas+vacates {
		return errStale
	}
	return nil
}

// counter counts slots that have a task whose desired state is no higher than
// some. Tasks come in order of their slots.
type counter struct{ slots, last uint64 }

func (c *counter) add(t *recordv1.Task, most musterv1.TaskState) {
	if t.DesiredState <= most && t.Slot != c.last {
		c.slots, c.last = c.slots+1, t.Slot
	}
}
