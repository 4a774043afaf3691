package orchestratord

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

// calm knows which slots of a service need nothing: each has one task, which runs
// as it should. A look leaves them out, so that what becomes of one task of a
// service costs the same whether it has ten tasks or 100,000.
type calm struct {
	// origin is what tasks are created from where slots are calm, nil if none were
	// looked for.
	origin *state.Origin
	// slots are calm; restless holds all others, and touched those of them that may be
	// calm by now.
	slots, restless, touched map[uint64]struct{}
}

// touch notes that a task of a slot has changed, or something that it depends on.
func (c *calm) touch(t *state.Task) {
	if c.origin != nil {
		delete(c.slots, t.Record.Slot)
		c.restless[t.Record.Slot] = struct{}{}
		c.touched[t.Record.Slot] = struct{}{}
	}
}

// settle looks for slots that are calm now, among all of them if tasks are to be
// made of something else.
func (l *taskList) settle(of state.Origin, isCalm func(*state.Task) bool) {
	c := &l.calm
	if c.origin == nil || *c.origin != of {
		*c = calm{origin: &of, slots: map[uint64]struct{}{}, restless: map[uint64]struct{}{}, touched: map[uint64]struct{}{}}
		l.tasks.Scan(func(_ string, t *state.Task) bool {
			number := t.Record.Slot
			_, second := c.slots[number]
			_, restless := c.restless[number]
			if number == 0 || second || restless || !isCalm(t) {
				c.touch(t)
			} else {
				c.slots[number] = struct{}{}
			}
			return true
		})
		clear(c.touched)
		return
	}
	for number, tasks := range l.slots(c.touched) {
		delete(c.touched, number)
		if number > 0 && len(tasks) == 1 && isCalm(tasks[0]) {
			delete(c.restless, number)
			c.slots[number] = struct{}{}
		}
	}
	for number := range c.touched { // it has no tasks any more
		delete(c.restless, number)
	}
	clear(c.touched)
}

// restlessTasks returns the tasks of all slots that are not calm, in order of their
// keys.
func (l *taskList) restlessTasks() []*state.Task {
	var tasks []*state.Task
	for _, those := range l.slots(l.calm.restless) {
		tasks = append(tasks, those...)
	}
	return tasks
}

// decide decides on the slots that are not calm, as if the others and as many
// replicas were not there. What needs all of them, because there are too many slots, is
// decided on all, and not too often for many.
func (l *loop) decide(s *service, c *commit, w *plan.World) (plan.Plan, error) {
	began := time.Now()
	if rest, ok := l.restless(s, c, w); ok {
		p, err := plan.Decide(rest)
		l.pause(&s.rest, began)
		if err != nil || vacatesNone(&p) {
			return p, err
		}
	}
	if w.Now.Before(s.wholeAfter) {
		return plan.Plan{Next: s.wholeAfter, WatchesRunning: s.watchesRunning}, nil
	}
	w.Tasks = s.tasks.all()
	began = time.Now()
	p, err := plan.Decide(w)
	l.pause(&s.wholeAfter, began)
	return p, err
}

// pause sets when there may be a look again after one that took long.
func (l *loop) pause(until *time.Time, began time.Time) {
	if took := time.Since(began); took > quickLook {
		*until = began.Add(time.Duration(float64(took) / l.d.cfg.LookShare))
	}
}

// restless returns a world without what is calm. It returns false if there may
// be more to decide than what one slot is to do: an update that goes on, say.
func (l *loop) restless(s *service, c *commit, w *plan.World) (*plan.World, bool) {
	switch r := w.Rollout; {
	case !c.counted || w.Spec(w.Service.GetTaskDigest()) == nil:
		return nil, false
	case r != nil && (r.State != musterv1.UpdateStatus_COMPLETED || r.SpecVersion != w.Service.SpecVersion):
		return nil, false
	}
	endpoint, err := state.EndpointDigest(w.Service.GetSpec().GetEndpoint())
	if err != nil {
		return nil, false
	}
	of := state.Origin{Spec: string(w.Service.GetTaskDigest()), Endpoint: string(endpoint)}
	s.tasks.settle(of, func(t *state.Task) bool { return l.isCalm(t, of, c.constraints) })
	calm := uint64(len(s.tasks.calm.slots))
	if calm == 0 || calm > c.replicas {
		return nil, false
	}
	rest := *w
	rest.Tasks = s.tasks.restlessTasks()
	rest.Taken = func(number uint64) bool {
		_, calm := s.tasks.calm.slots[number]
		return calm
	}
	rest.Service = proto.CloneOf(w.Service)
	if rest.Service.Spec == nil {
		rest.Service.Spec = &musterv1.ServiceSpec{}
	}
	left := c.replicas - calm
	rest.Service.Spec.Mode = &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: &left}}
	return &rest, true
}

// isCalm reports whether nothing is to be done about a slot that has this one
// task.
func (l *loop) isCalm(t *state.Task, of state.Origin, constraints placement.Constraints) bool {
	return t.Desired() == musterv1.TaskState_RUNNING && t.State() == musterv1.TaskState_RUNNING &&
		state.OriginOf(t.Record) == of &&
		l.nodes.suits(t, constraints)
}

// vacatesNone reports whether a plan gives up no slot.
func vacatesNone(p *plan.Plan) bool {
	return !slices.ContainsFunc(p.Slots, func(s plan.Slot) bool { return s.Vacates })
}
