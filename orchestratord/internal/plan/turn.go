package plan

import (
	"slices"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// turn is what has become of a slot's turn, as far as it is known now.
type turn struct {
	// settledAt is when the task that was made in the turn had begun to run, or had
	// ended, by a manager's clock; 0: neither yet.
	settledAt int64
	// failed says that it failed before it ran, or within the time in which that
	// counts.
	failed bool
}

// InTurn reports whether a task may be the one for which its slot's turn lasts, by
// what its record tells.
func InTurn(t *recordv1.Task) bool {
	return t.Turn != nil && t.Turn.SettledAt == 0 && t.DesiredState <= musterv1.TaskState_COMPLETE
}

// turnOf reads a task that was made in a turn, or that has taken it over.
func (d *decider) turnOf(t *state.Task) turn {
	if r := t.Record.Turn; r.GetSettledAt() != 0 || r.GetFailed() {
		return turn{settledAt: r.SettledAt, failed: r.Failed}
	}
	ran := timeOf(t.Status, musterv1.TaskState_RUNNING)
	switch s := t.State(); {
	case s == musterv1.TaskState_RUNNING:
		return turn{settledAt: d.managed(t, ran)}
	case s == musterv1.TaskState_ORPHANED, s < musterv1.TaskState_RUNNING:
		return turn{}
	default:
		u := turn{settledAt: d.managed(t, t.Status.GetAt())}
		if ran != 0 {
			u.settledAt = d.managed(t, ran)
		}
		// Both times are by the worker's clock.
		u.failed = d.fails(s) && (ran == 0 || t.Status.GetAt()-ran <= d.config.monitor)
		return u
	}
}

// fails reports whether a task that ended in a state has failed. One that ended
// well has, too, if it should have run on.
func (d *decider) fails(s musterv1.TaskState) bool {
	switch s {
	case musterv1.TaskState_FAILED, musterv1.TaskState_REJECTED:
		return true
	case musterv1.TaskState_COMPLETE:
		return d.target.policy.condition == musterv1.RestartPolicy_ANY
	default:
		return false
	}
}

// managed turns a time by the clock of a task's worker into one by a manager's: as
// long before the manager heard of the task's state as it was before that state
// was reached.
func (d *decider) managed(t *state.Task, at int64) int64 {
	heard := endedAt(t)
	if at != 0 {
		heard -= max(0, t.Status.GetAt()-at)
	}
	return min(max(heard, t.Record.CreatedAt), d.now)
}

// timeOf is when a task reached a state, by its worker's clock; 0: never.
func timeOf(s *recordv1.Status, reached musterv1.TaskState) int64 {
	for t := range state.Times(s) {
		if t.State == reached {
			return t.At
		}
	}
	if s.GetState() == reached {
		return s.GetAt()
	}
	return 0
}

// handOn returns what a task takes over of the turn of the one that it follows.
func (d *decider) handOn(t *state.Task) *recordv1.Turn {
	if t.Record.Turn == nil {
		return nil
	}
	r, u := proto.CloneOf(t.Record.Turn), d.turnOf(t)
	r.SettledAt, r.Failed = u.settledAt, u.failed
	return r
}

// seat is a wanted slot before anything is decided on it: where it stands in the
// update.
type seat struct {
	number uint64
	node   string
	tasks  []*state.Task
	// frozen slots get no new task.
	frozen bool

	// due says that a task of another spec is there, none of the target's, and that
	// the slot is to have its turn.
	due bool
	// begins says that it has its turn now.
	begins bool
	// lead is the task that the slot's last turn made, or one that has taken it
	// over; nil if there is none.
	lead *state.Task
	turn turn
	// flying says that the turn has begun and has not come to anything yet.
	flying bool
	// running says that a task runs in the slot, and placed that one has a node.
	running, placed bool
}

// look finds out where a slot stands.
func (d *decider) look(e *seat) {
	current, outdated := false, false
	lead := func(t *state.Task, over *state.Task) *state.Task {
		if t.Record.Turn != nil && (over == nil || t.Record.CreatedAt > over.Record.CreatedAt) {
			return t
		}
		return over
	}
	var former *state.Task
	for _, t := range e.tasks {
		if !t.Live() {
			continue
		}
		e.running = e.running || t.State() == musterv1.TaskState_RUNNING
		e.placed = e.placed || t.NodeID != "" && !t.Terminal()
		if d.target.clean(t) {
			current, e.lead = true, lead(t, e.lead)
		} else {
			outdated, former = true, lead(t, former)
		}
	}
	if done := d.done(e.tasks); done != nil {
		if d.target.clean(done) {
			current, e.lead = true, lead(done, e.lead)
		} else {
			outdated, former = true, lead(done, former)
		}
	}
	if !current {
		// One of a former spec beside one that is what it should be is at its end.
		e.lead = former
	}
	if e.frozen && e.lead != nil && e.lead.Live() && e.lead.Terminal() {
		// It is put to rest, and forgotten in the update, see freeze.
		e.lead = nil
	}
	e.due = outdated && !current && !e.frozen
	if e.lead != nil {
		e.turn = d.turnOf(e.lead)
		// What a paused node has may never come to anything, and what is lost and not
		// to be replaced will not: nobody waits for it.
		e.flying = !e.frozen && e.lead.Live() && e.turn.settledAt == 0 && !e.turn.failed && !d.ends(e.lead)
	}
}

// ends reports whether a task is lost or misplaced and no other follows it.
func (d *decider) ends(t *state.Task) bool {
	g := d.target
	return g.clean(t) && g.policy.condition == musterv1.RestartPolicy_NONE && (d.lost(t) || d.misplaced(g, t))
}

// survey is where all slots of a service stand in the update.
type survey struct {
	due, flying, failed uint64
	// blame is a task of a slot that has failed.
	blame *state.Task
	// watched says that the time in which a failure counts is not over for all.
	watched bool
	// resting counts slots that are through, after which others have to wait for a
	// while.
	resting uint64
}

// survey looks at all wanted slots.
func (d *decider) survey(seats []*seat) survey {
	var v survey
	for _, e := range seats {
		d.look(e)
		if e.due {
			v.due++
		}
		switch {
		case e.lead == nil:
		case e.flying:
			v.flying++
		case e.lead.Record.Turn.Rollout == d.rollout.GetNumber():
			if e.turn.failed {
				v.failed++
				v.blame = e.lead
			} else if end := e.turn.settledAt + d.config.monitor; end > d.now && underWay(d.rollout) && d.config.watches() {
				v.watched = true
				d.wake(end)
			}
			if end := e.turn.settledAt + d.config.delay; end > d.now {
				v.resting++
				if underWay(d.rollout) {
					d.wake(end)
				}
			}
		}
	}
	return v
}

// giveTurns chooses the slots whose turn it is: no more than the update's
// parallelism are under way at once. Those come first that run nothing, and of
// these those that a former update left half done, so that as few as possible do
// without a task. What has a node comes before what waits for one: its room may be
// what the others wait for, and their turn would never end.
func (d *decider) giveTurns(seats []*seat, v survey) {
	if v.due == 0 || !underWay(d.rollout) {
		return
	}
	due := make([]*seat, 0, v.due)
	taken := v.resting
	for _, e := range seats {
		if e.due {
			due = append(due, e)
		} else if e.flying {
			taken++
		}
	}
	slices.SortStableFunc(due, func(a, b *seat) int { return a.urgency() - b.urgency() })
	if p := d.config.parallelism; p > 0 {
		due = due[:min(uint64(len(due)), p-min(p, taken))]
	}
	for _, e := range due {
		e.begins = true
	}
}

func (e *seat) urgency() int {
	switch {
	case e.flying:
		return 0
	case !e.running && e.placed:
		return 1
	case !e.running:
		return 2
	default:
		return 3
	}
}

// held returns what a slot is kept by whose turn has not come: what it is made of.
func (d *decider) held(e *seat) *target {
	var of *state.Task
	for _, t := range e.tasks {
		switch {
		case !t.Live():
		case of == nil, of.Terminal() && !t.Terminal():
			of = t
		case of.Terminal() == t.Terminal() && further(t, of):
			of = t
		}
	}
	if of == nil {
		if of = d.done(e.tasks); of == nil {
			return nil
		}
	}
	key := string(of.Record.SpecDigest) + string(of.Record.EndpointDigest)
	g, known := d.former[key]
	if !known {
		// A spec that is not to be found any more, or makes no sense, gives a slot
		// nothing to be kept by: nil.
		g, _ = newTarget(d.w, of.Record.SpecDigest, of.Record.EndpointDigest, of.Record.SpecVersion)
		if d.former == nil {
			d.former = map[string]*target{}
		}
		d.former[key] = g
	}
	return g
}
