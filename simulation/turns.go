package simulation

import (
	"bytes"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// turns holds, for each service, how many of its slots may be updated at the
// same time: as many as the update's parallelism says, or as many as
// there were when that was changed, until they are through. It is asked at the end of
// each moment of virtual time: tables come one by one, and only then all are there.
//
// A slot is being updated from when it got the task of its turn until that, or one
// that took its place, runs or has failed.
type turns struct {
	o *observer
	// looked is when last something was seen, and last what was seen at the moment
	// before.
	looked time.Time
	last   *store.Snapshot
	// allowed is how many slots of a service may be updated at once.
	allowed map[string]uint64
	// asked are the largest bounds that services were given since the last moment.
	asked map[string]uint64
	// calls are those for services, by name, that are under way or have ended in the
	// moment that was last looked at. Of what several of them asked for in one moment
	// only the last can be seen.
	calls map[string][]*rollCall
	// paused are the nodes that were paused at some time.
	paused map[string]bool
}

// rollCall is a user's call that sets how many slots may be updated at once.
type rollCall struct {
	most  uint64
	ended time.Time
}

func newTurns(o *observer) *turns {
	return &turns{o: o, allowed: map[string]uint64{}, asked: map[string]uint64{}, calls: map[string][]*rollCall{}, paused: map[string]bool{}}
}

// advance notes what is asked for, and holds what was so at the moment before.
func (u *turns) advance(from, to *store.Snapshot) {
	if from != nil && time.Now().After(u.looked) {
		u.hold(u.last, from)
		u.last = from
		clear(u.asked)
	}
	u.looked = time.Now()
	for ch := range u.o.tables.Nodes.Changes(from, to) {
		if ch.New != nil && ch.New.Value.Spec.GetAvailability() == musterv1.NodeSpec_PAUSE {
			u.paused[ch.New.Key] = true
		}
	}
	ask := func(id string) {
		if f, ok := u.flightOf(to, id); ok {
			u.asked[id] = max(u.asked[id], f.most)
		}
	}
	for ch := range u.o.tables.Services.Changes(from, to) {
		ask(ch.Key())
	}
	for ch := range u.o.tables.Rollouts.Changes(from, to) {
		ask(ch.Key())
	}
}

// calling notes that a user makes a call that sets how a service's tasks are
// replaced, until end is called.
func (o *observer) calling(service string, how *musterv1.UpdateConfig) (end func()) {
	c := &rollCall{most: parallelism(how)}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.turns.calls[service] = append(o.turns.calls[service], c)
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		c.ended = time.Now()
	}
}

// called notes what users have asked for in the moment that was last looked at.
func (u *turns) called() {
	for id, name := range u.o.names {
		for _, c := range u.calls[name] {
			u.asked[id] = max(u.asked[id], c.most)
		}
	}
	for name, calls := range u.calls {
		u.calls[name] = slices.DeleteFunc(calls, func(c *rollCall) bool { return !c.ended.IsZero() && !c.ended.After(u.looked) })
	}
}

func (u *turns) hold(from, to *store.Snapshot) {
	u.called()
	touched := map[string]bool{}
	for ch := range u.o.tables.Tasks.Changes(from, to) {
		id, _, _ := state.SplitKey(ch.Key())
		touched[id] = true
	}
	for id := range u.asked {
		touched[id] = true
	}
	for id := range touched {
		now, ok := u.flightOf(to, id)
		if !ok {
			delete(u.allowed, id)
			continue
		}
		allowed := max(now.most, u.allowed[id], u.asked[id])
		if was, ok := u.flightOf(from, id); ok && u.asked[id] > 0 {
			// Some may have begun before the change.
			allowed = max(allowed, u.count(was, from, newsAge), u.count(now, from, newsAge))
			if rolls(was.rollout) {
				allowed = max(allowed, was.most)
			}
		}
		flying := u.count(now, to, 0)
		if flying > allowed {
			u.o.c.violated("%d slots of %s are being updated at once, at most %d should be (%s, %v)",
				flying, u.o.names[id], allowed, describeRoll(now.config), now.rollout.GetState())
		}
		// What is through does not begin again.
		u.allowed[id] = max(now.most, min(allowed, u.count(now, to, newsAge)))
	}
}

// flight is what an update of a service goes by.
type flight struct {
	id       string
	service  *recordv1.Service
	rollout  *recordv1.Rollout
	config   *musterv1.UpdateConfig
	follow   state.Effective
	endpoint []byte
	task     *musterv1.TaskSpec
	// most is the parallelism; a large number if there is no bound.
	most uint64
}

func (u *turns) flightOf(at *store.Snapshot, id string) (*flight, bool) {
	if at == nil {
		return nil, false
	}
	s, ok := u.o.tables.Services.Get(at, id)
	if !ok {
		return nil, false
	}
	r, _ := u.o.tables.Rollouts.Get(at, id)
	f := &flight{id: id, service: s.Value, rollout: r.Value, config: rollConfigOf(s.Value, r.Value), follow: state.EffectiveSpec(s.Value, r.Value)}
	f.most = parallelism(f.config)
	var err error
	if f.endpoint, err = state.EndpointDigest(f.follow.Endpoint); err != nil {
		return nil, false
	}
	f.task = u.o.spec(at, f.follow.Digest)
	return f, true
}

// parallelism is how many slots have their turn at once; a large number if there is no
// bound.
func parallelism(u *musterv1.UpdateConfig) uint64 {
	switch {
	case u == nil:
		return 1
	case u.Parallelism == 0:
		return math.MaxInt
	}
	return u.Parallelism
}

func (o *observer) spec(at *store.Snapshot, digest []byte) *musterv1.TaskSpec {
	e, _ := o.tables.Specs.Get(at, state.SpecKey(digest))
	return e.Value.GetTask()
}

// newsAge is how late an orchestrator may hear that a task runs or has failed. It
// may count a slot as being updated and leave out another.
const newsAge = 10 * time.Second

// count counts the slots that are being updated, or were a short while ago.
func (u *turns) count(f *flight, at *store.Snapshot, ago time.Duration) uint64 {
	o := u.o
	updating, through := map[string]bool{}, map[string]bool{}
	for e := range o.tables.Tasks.Scan(at, f.id+"/") {
		t := e.Value
		_, slot, id := state.SplitKey(e.Key)
		if t.DesiredState > musterv1.TaskState_COMPLETE || f.service.Spec.GetGlobal() != nil && u.paused[t.NodeId] {
			// An update does not wait for what a paused node has of a global service.
			continue
		}
		switch turn := t.Turn; {
		case turn != nil && turn.SettledAt == 0 && !turn.Failed && o.of(id).unsettled(ago):
			updating[slot] = true
		case f.clean(t, o.spec(at, t.SpecDigest)):
			through[slot] = true
		}
	}
	n := uint64(0)
	for slot := range updating {
		if !through[slot] {
			n++
		}
	}
	return n
}

// clean says whether a task is what is wanted.
func (f *flight) clean(t *recordv1.Task, spec *musterv1.TaskSpec) bool {
	return bytes.Equal(t.EndpointDigest, f.endpoint) && (bytes.Equal(t.SpecDigest, f.follow.Digest) || sameRun(spec, f.task))
}

// sameRun says whether two task specs run the same: placement changes without a new
// task, if the node meets it.
func sameRun(a, b *musterv1.TaskSpec) bool {
	if a == nil || b == nil {
		return false
	}
	a, b = clone(a), clone(b)
	a.Placement, b.Placement = nil, nil
	return proto.Equal(a, b)
}
