package simulation

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// rogue is a daemon that writes records as it should not, through the store as the
// others do.
type rogue struct {
	tables *state.Tables
	store  *store.Store
	now    *store.Snapshot
	tasks  *state.Follower
}

// roguePeriod is how often a rogue does its work.
const roguePeriod = 300 * time.Millisecond

// rogues runs a rogue beside everything else. What it does is told of a moment, and
// tried once.
func rogues(name string, work func(ctx context.Context, r *rogue) error) Mutation {
	return Mutation{Name: name, Beside: func(ctx context.Context, space kv.KV) error {
		t := state.NewTables()
		s, err := store.New(store.Options{KV: space, Prefix: prefix}, t.Services, t.Specs, t.Nodes, t.Tasks, t.Rollouts, t.Assignments, t.NodeStates, t.Statuses, t.Configs, t.Blobs,
			t.Endpoints, t.Blocks)
		if err != nil {
			return err
		}
		var runs sync.WaitGroup
		defer runs.Wait()
		runs.Go(func() {
			_ = s.Run(ctx) // it ends with ctx, and with nothing else
		})
		if err := s.Ready(ctx); err != nil {
			return nil
		}
		r := &rogue{tables: t, store: s, tasks: state.NewFollower(t)}
		for ctx.Err() == nil {
			_ = backoff.Sleep(ctx, roguePeriod)
			r.now = s.Snapshot()
			r.tasks.Advance(r.now)
			if err := work(ctx, r); err != nil && ctx.Err() == nil {
				return err
			}
		}
		return nil
	}}
}

// ready returns the nodes that take tasks, in order.
func (r *rogue) ready() []string {
	nodes := map[string]bool{}
	for e := range r.tables.NodeStates.Scan(r.now, "") {
		if e.Value.State == musterv1.NodeStatus_READY {
			nodes[e.Key] = true
		}
	}
	return slices.Sorted(maps.Keys(nodes))
}

// assign writes an assignment of a task, whatever there is.
func (r *rogue) assign(ctx context.Context, t *state.Task, node string) error {
	service, ok := r.tables.Services.Get(r.now, t.ServiceID)
	if !ok {
		return nil
	}
	spec, ok := r.tables.Specs.Get(r.now, state.SpecKey(t.Record.SpecDigest))
	if !ok {
		return nil
	}
	request, err := placement.NewRequest(t.ServiceID, spec.Value.Task, service.Value.Spec.Endpoint)
	if err != nil {
		return err
	}
	return r.store.Update(ctx, func(tx *store.Tx) error {
		if _, ok := r.tables.Tasks.Get(tx, t.Key); !ok {
			return nil
		}
		r.tables.Assignments.Put(tx, state.NodeTaskKey(node, t.ServiceID, t.ID), request.Assignment(t.Record.Slot, time.Now().UnixMilli()))
		return nil
	})
}

// overcommittingScheduler gives tasks that fit nowhere to a node anyway.
func overcommittingScheduler() Mutation {
	waiting := map[string]int{}
	return rogues("a scheduler that overcommits", func(ctx context.Context, r *rogue) error {
		nodes := r.ready()
		for t := range r.tasks.Tasks() {
			if t.NodeID != "" || t.Desired() > musterv1.TaskState_RUNNING || len(nodes) == 0 {
				continue
			}
			// The real scheduler has seen it by then, and has no place for it.
			if waiting[t.ID]++; waiting[t.ID] > 5 && t.Record.NodeId == "" {
				if err := r.assign(ctx, t, nodes[0]); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// secondScheduler places tasks and does not heed the fence: what has a node by now
// gets another.
func secondScheduler() Mutation {
	now := every(20)
	done := map[string]bool{}
	return rogues("a scheduler without a fence", func(ctx context.Context, r *rogue) error {
		nodes := r.ready()
		for t := range r.tasks.Tasks() {
			if t.NodeID == "" || t.Desired() != musterv1.TaskState_RUNNING || t.Terminal() || done[t.ID] {
				continue
			}
			done[t.ID] = true
			if at := slices.IndexFunc(nodes, func(n string) bool { return n != t.NodeID }); at >= 0 && now() {
				if err := r.assign(ctx, t, nodes[at]); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// secondOrchestrator makes a task for a slot that has one.
func secondOrchestrator() Mutation {
	now := every(20)
	done := map[string]bool{}
	return rogues("a second task for a slot", func(ctx context.Context, r *rogue) error {
		for t := range r.tasks.Tasks() {
			if t.Desired() != musterv1.TaskState_RUNNING || t.Terminal() || done[t.ID] {
				continue
			}
			if done[t.ID] = true; !now() {
				continue
			}
			if err := r.copy(ctx, t); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *rogue) copy(ctx context.Context, t *state.Task) error {
	return r.store.Update(ctx, func(tx *store.Tx) error {
		if _, ok := r.tables.Tasks.Get(tx, t.Key); !ok {
			return nil
		}
		record := proto.CloneOf(t.Record)
		record.CreatedAt++
		r.tables.Tasks.Put(tx, state.TaskKey(t.ServiceID, record.Slot, record.NodeId, state.NewID()), record)
		return nil
	})
}

// eagerOrchestrator forgets a task that still runs.
func eagerOrchestrator() Mutation {
	now := every(20)
	done := map[string]bool{}
	return rogues("a stop request taken back", func(ctx context.Context, r *rogue) error {
		for t := range r.tasks.Tasks() {
			if t.Desired() != musterv1.TaskState_SHUTDOWN || done[t.ID] {
				continue
			}
			if done[t.ID] = true; !now() {
				continue
			}
			if err := r.lower(ctx, t); err != nil {
				return err
			}
		}
		return nil
	})
}

// lower has a task run again that was told to stop.
func (r *rogue) lower(ctx context.Context, t *state.Task) error {
	return r.store.Update(ctx, func(tx *store.Tx) error {
		e, ok := r.tables.Tasks.Get(tx, t.Key)
		if !ok {
			return nil
		}
		record := proto.CloneOf[*recordv1.Task](e.Value)
		record.DesiredState = musterv1.TaskState_RUNNING
		r.tables.Tasks.Put(tx, t.Key, record)
		return nil
	})
}

// hastyOrchestrator gives slots their turn in an update that have to wait for others.
func hastyOrchestrator() Mutation {
	return rogues("more updates at once than allowed", func(ctx context.Context, r *rogue) error {
		for e := range r.tables.Rollouts.Scan(r.now, "") {
			s, ok := r.tables.Services.Get(r.now, e.Key)
			if !ok || !rolls(e.Value) || rollConfigOf(s.Value, e.Value).Parallelism == 0 {
				continue
			}
			if err := r.hurry(ctx, e.Key); err != nil {
				return err
			}
		}
		return nil
	})
}

// hurry has all slots of a service have their turn.
func (r *rogue) hurry(ctx context.Context, id string) error {
	return r.store.Update(ctx, func(tx *store.Tx) error {
		s, ok := r.tables.Services.Get(tx, id)
		rollout, rolling := r.tables.Rollouts.Get(tx, id)
		if !ok || !rolling || !rolls(rollout.Value) {
			return nil
		}
		follow := state.EffectiveSpec(s.Value, rollout.Value)
		endpoint, err := state.EndpointDigest(follow.Endpoint)
		if err != nil {
			return err
		}
		tasks := maps.Collect(func(yield func(string, *recordv1.Task) bool) {
			for e := range r.tables.Tasks.Scan(tx, id+"/") {
				if e.Value.DesiredState <= musterv1.TaskState_COMPLETE && !bytes.Equal(e.Value.SpecDigest, follow.Digest) && !yield(e.Key, e.Value) {
					return
				}
			}
		})
		for key, t := range tasks {
			old := proto.CloneOf(t)
			old.DesiredState = musterv1.TaskState_SHUTDOWN
			r.tables.Tasks.Put(tx, key, old)
			r.tables.Tasks.Put(tx, state.TaskKey(id, t.Slot, t.NodeId, state.NewID()), &recordv1.Task{
				Slot: t.Slot, NodeId: t.NodeId, SpecDigest: follow.Digest, SpecVersion: follow.Version, EndpointDigest: endpoint,
				CreatedAt: t.CreatedAt + 1, DesiredState: musterv1.TaskState_RUNNING, DesiredAt: t.CreatedAt + 1,
				Turn: &recordv1.Turn{Rollout: rollout.Value.Number},
			})
		}
		return nil
	})
}

// impatientOrchestrator starts tasks that have to wait for other services.
func impatientOrchestrator() Mutation {
	return rogues("tasks that do not wait for others", func(ctx context.Context, r *rogue) error {
		for t := range r.tasks.Tasks() {
			if t.Desired() != musterv1.TaskState_NEW {
				continue
			}
			if err := r.lower(ctx, t); err != nil {
				return err
			}
		}
		return nil
	})
}
