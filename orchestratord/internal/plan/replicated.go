package plan

import (
	"cmp"
	"slices"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// replica is a slot of a replicated service, before anything is decided.
type replica struct {
	*slotState
	// occupied slots count as replicas: a task is meant to run there, or has
	// finished for good. The others hold nothing but history.
	occupied bool
	surplus  bool
}

// replicated brings a service to its number of slots. Missing ones get the
// lowest numbers that are free.
type replicated struct {
	d       *decider
	slots   []replica
	missing uint64
}

func (d *decider) replicated(replicas uint64) *replicated {
	gs := groups(d.tasks)
	m := &replicated{d: d, slots: make([]replica, 0, len(gs))}
	states := make([]slotState, len(gs))
	have := uint64(len(d.settled))
	for i, g := range gs {
		states[i] = slotState{number: g[0].Record.Slot, tasks: g}
		r := replica{slotState: &states[i], occupied: g[0].Record.Slot != 0 && d.occupied(g)}
		if r.occupied {
			have++
		}
		m.slots = append(m.slots, r)
	}
	if have > replicas {
		// Settled slots cannot be given up. If some are left out, the plan is discarded:
		// see needsAll.
		d.chooseSurplus(m.slots, int(min(have-replicas, have-uint64(len(d.settled)))))
	} else {
		m.missing = replicas - have
	}
	return m
}

func (m *replicated) wantedSlots() []*slotState {
	wanted := make([]*slotState, 0, len(m.slots))
	for _, r := range m.slots {
		if r.occupied && !r.surplus {
			wanted = append(wanted, r.slotState)
		}
	}
	return wanted
}

// act goes through the slots in order of their numbers, present and missing ones
// alike, so that changes of neighbours lie together.
func (m *replicated) act() {
	d, missing := m.d, m.missing
	next := uint64(1)
	fillNext := func() {
		if _, settled := d.settled[next]; !settled {
			d.fill(next, nil)
			missing--
		}
		next++
	}
	for _, r := range m.slots {
		for missing > 0 && next < r.number {
			fillNext()
		}
		if r.number != 0 {
			next = r.number + 1
		}
		switch {
		case r.occupied && !r.surplus:
			s := d.open(r.number, "", r.tasks)
			s.keepSlot(r.slotState, ReasonSlotEmpty)
			s.close()
		case !r.occupied && missing > 0 && r.number != 0:
			d.fill(r.number, r.tasks)
			missing--
		default:
			s := d.open(r.number, r.tasks[0].Record.NodeId, r.tasks)
			if s.vacates = r.surplus; r.surplus {
				s.drop(ReasonScaledDown)
			} else {
				s.drop(ReasonSlotUnused)
			}
			s.close()
		}
	}
	for missing > 0 {
		fillNext()
	}
}

func (d *decider) fill(number uint64, tasks []*state.Task) {
	s := d.open(number, "", tasks)
	s.keep(false, ReasonSlotEmpty)
	s.close()
}

func (d *decider) occupied(tasks []*state.Task) bool {
	for _, t := range tasks {
		if t.Live() {
			return true
		}
	}
	return d.done(tasks) != nil
}

// done returns the newest task of a slot without live ones if the slot is
// finished, be it by a former spec.
func (d *decider) done(tasks []*state.Task) *state.Task {
	s := slot{tasks: tasks}
	n := s.newest()
	if n < 0 || !state.Finished(tasks[n].Record) {
		return nil
	}
	return tasks[n]
}

// chooseSurplus marks the slots to give up when a service is scaled down. In
// Swarm's order the last go first: what is running stays before what is not,
// and low numbers before high ones; but before all that, a node's first task
// stays before any node's second, so that the rest is spread evenly; and slots
// whose task has no node yet, or that are being replaced, go first of all.
func (d *decider) chooseSurplus(slots []replica, n int) {
	type candidate struct {
		at      int
		running bool
		node    string
		copies  int
	}
	var cs []candidate
	for i, r := range slots {
		if !r.occupied {
			continue
		}
		c := candidate{at: i}
		var live []*state.Task
		for _, t := range r.tasks {
			if t.Live() {
				live = append(live, t)
			}
		}
		if len(live) == 0 {
			live = []*state.Task{d.done(r.tasks)}
		}
		if len(live) == 1 {
			c.node = live[0].NodeID
		}
		c.running = slices.ContainsFunc(live, func(t *state.Task) bool { return t.State() == musterv1.TaskState_RUNNING })
		cs = append(cs, c)
	}
	// They are in order of their numbers, and the sorts are stable.
	slices.SortStableFunc(cs, func(a, b candidate) int {
		return cmp.Compare(rank(a.running), rank(b.running))
	})
	copies := map[string]int{}
	for i := range cs {
		if c := &cs[i]; c.node == "" {
			c.copies = int(^uint(0) >> 1)
		} else {
			copies[c.node]++
			c.copies = copies[c.node]
		}
	}
	slices.SortStableFunc(cs, func(a, b candidate) int { return cmp.Compare(a.copies, b.copies) })
	for _, c := range cs[len(cs)-n:] {
		slots[c.at].surplus = true
	}
}

func rank(running bool) int {
	if running {
		return 0
	}
	return 1
}
