package plan_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

// TestRandomWorlds lets users, nodes and workers do what they like between
// looks, and checks after each look that nothing was done that must never be;
// and in the end, when the faults stop, that the service runs as it should.
func TestRandomWorlds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		policy := &musterv1.RestartPolicy{
			Condition:   musterv1.RestartPolicy_Condition(rapid.IntRange(0, 3).Draw(t, "condition")),
			MaxAttempts: rapid.SampledFrom([]uint64{0, 0, 1, 3}).Draw(t, "attempts"),
			Window:      seconds(rapid.SampledFrom([]int{0, 5}).Draw(t, "window")),
			Delay:       seconds(rapid.IntRange(0, 6).Draw(t, "delay")),
		}
		version := uint64(1)
		w.spec(null(version, restart(policy)))
		w.history = int64(rapid.IntRange(0, 3).Draw(t, "history"))
		global := rapid.Bool().Draw(t, "global")
		var replicas uint64
		scale := func(t *rapid.T) {
			replicas = uint64(rapid.IntRange(0, 5).Draw(t, "replicas"))
			w.replicas(replicas)
		}
		if global {
			w.global()
		} else {
			scale(t)
		}
		task := func(t *rapid.T, of func(*state.Task) bool) *state.Task {
			ts := slices.DeleteFunc(w.sorted(), func(t *state.Task) bool { return !of(t) })
			if len(ts) == 0 {
				return nil
			}
			return rapid.SampledFrom(ts).Draw(t, "task")
		}
		node := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		actions := map[string]func(*rapid.T){
			"look":  func(t *rapid.T) { w.checkedReconcile(t) },
			"look2": func(t *rapid.T) { w.checkedReconcile(t) },
			"wait": func(t *rapid.T) {
				w.now = w.now.Add(time.Duration(rapid.IntRange(1, 70_000).Draw(t, "ms")) * time.Millisecond)
			},
			"update": func(t *rapid.T) {
				version = uint64(rapid.IntRange(1, 3).Draw(t, "spec"))
				w.spec(null(version, restart(policy)))
			},
			"config":    func(t *rapid.T) { w.service.Spec.Update = updateConfig(t) },
			"rollback":  func(t *rapid.T) { w.service.Spec.Rollback = updateConfig(t) },
			"again":     func(*rapid.T) { w.service.Attempt++ },
			"roll back": func(*rapid.T) { w.rollBack() },
			"node": func(t *rapid.T) {
				w.nodes[node.Draw(t, "node")] = plan.Condition(rapid.IntRange(1, 4).Draw(t, "condition"))
			},
			"node goes": func(t *rapid.T) { delete(w.nodes, node.Draw(t, "node")) },
			"assign": func(t *rapid.T) {
				if x := task(t, func(t *state.Task) bool { return t.NodeID == "" && t.Live() && t.Desired() > unstarted }); x != nil {
					n := x.Record.NodeId
					if n == "" {
						n = node.Draw(t, "node")
					}
					w.assign(x, n)
				}
			},
			"advance": func(t *rapid.T) {
				if x := task(t, func(t *state.Task) bool { return t.NodeID != "" && t.State() < min(t.Desired(), shutdown) }); x != nil {
					w.report(x, min(x.Desired(), shutdown))
				}
			},
			"end": func(t *rapid.T) {
				if x := task(t, func(t *state.Task) bool { return t.NodeID != "" && !t.Terminal() }); x != nil {
					w.report(x, rapid.SampledFrom([]musterv1.TaskState{complete, failed, rejected}).Draw(t, "state"))
				}
			},
			"wait for others": func(t *rapid.T) { w.waits = rapid.IntRange(0, 2).Draw(t, "waits") == 0 },
			"history":         func(t *rapid.T) { w.history = int64(rapid.IntRange(0, 3).Draw(t, "history")) },
		}
		if !global {
			actions["scale"] = scale
		}
		t.Repeat(actions)

		for _, n := range []string{"a", "b", "c", "d"} {
			w.nodes[n] = plan.Up
		}
		w.waits = false
		w.eventually(t)
		want := make([]string, 0, 8)
		if global {
			want = append(want, "a", "b", "c", "d")
		}
		for n := range replicas {
			want = append(want, state.SlotSegment(n+1))
		}
		w.checkEnd(t, want, policy)
	})
}

// updateConfig draws how tasks are replaced.
func updateConfig(t *rapid.T) *musterv1.UpdateConfig {
	return &musterv1.UpdateConfig{
		Order:           musterv1.UpdateConfig_Order(rapid.IntRange(0, 2).Draw(t, "order")),
		Parallelism:     rapid.SampledFrom([]uint64{0, 1, 1, 2, 3}).Draw(t, "parallelism"),
		Delay:           seconds(rapid.SampledFrom([]int{0, 0, 3, 20}).Draw(t, "delay")),
		Monitor:         seconds(rapid.SampledFrom([]int{0, 5, 30}).Draw(t, "monitor")),
		FailureAction:   musterv1.UpdateConfig_FailureAction(rapid.IntRange(0, 3).Draw(t, "action")),
		MaxFailureRatio: rapid.SampledFrom([]float32{0, 0.3, 1}).Draw(t, "ratio"),
	}
}

// eventually is converge without a fixed end: it takes as many turns as there
// are waits in it.
func (w *world) eventually(t *rapid.T) {
	for range 200 {
		p := w.checkedReconcile(t)
		before := w.print()
		w.settle()
		if !p.Empty() || before != w.print() {
			continue
		}
		if s := w.rollout.GetState(); s == musterv1.UpdateStatus_PAUSED || s == musterv1.UpdateStatus_ROLLBACK_PAUSED {
			w.service.Attempt++
			continue
		}
		if p.Next.IsZero() {
			return
		}
		w.now = p.Next
	}
	t.Fatalf("does not converge:%s", w.print())
}

// checkedReconcile decides, carries out what is decided, and checks what must hold
// whatever has happened.
func (w *world) checkedReconcile(t *rapid.T) plan.Plan {
	p, err := plan.Decide(w.view())
	if err != nil {
		t.Fatal(err)
	}
	started, inFlight := map[string]bool{}, w.inFlight()
	for _, s := range p.Slots {
		for _, c := range s.Changes {
			if c.Record != nil && c.Record.DesiredState == running {
				_, slot, _ := state.SplitKey(c.Key)
				started[slot] = true
			}
			old := w.tasks[c.Key]
			if old != nil && c.Record != nil && c.Record.DesiredState < old.Desired() {
				t.Fatalf("desired state of %s is lowered from %v to %v", c.Key, old.Desired(), c.Record.DesiredState)
			}
			if old != nil && c.Record == nil && old.NodeID != "" && !old.Terminal() && w.nodes[old.NodeID].Keeps() {
				t.Fatalf("record of %s is deleted while it runs", c.Key)
			}
		}
	}
	w.apply(p)
	config := w.config()
	if now := w.inFlight(); config.Parallelism > 0 && uint64(now) > max(config.Parallelism, uint64(inFlight)) {
		t.Fatalf("%d slots have their turn at once, %d before, at most %d should:%s", now, inFlight, config.Parallelism, w.print())
	}
	again, err := plan.Decide(w.view())
	if err != nil {
		t.Fatal(err)
	}
	if again.Rollout != nil && len(again.Slots) == 0 {
		// That tasks are at their end can be the end of a rollout.
		w.apply(again)
		if again, err = plan.Decide(w.view()); err != nil {
			t.Fatal(err)
		}
	}
	if !again.Empty() && w.waits {
		// A slot that is held for other services counts as under way in a look in which
		// its task ends. The next look gives its turn to another one.
		w.apply(again)
		if again, err = plan.Decide(w.view()); err != nil {
			t.Fatal(err)
		}
	}
	if !again.Empty() {
		t.Fatalf("a second look finds more to do:%s", describe(again))
	}
	startFirst := config.Order == musterv1.UpdateConfig_START_FIRST
	occupied := uint64(0)
	for key, ts := range w.bySlot() {
		var live, past, waited int
		for _, x := range ts {
			switch reachable := w.nodes[x.NodeID] != plan.Down && w.nodes[x.NodeID] != plan.Gone; {
			case x.Live():
				live++
			case x.NodeID == "":
				if w.now.UnixMilli()-x.Record.DesiredAt >= time.Second.Milliseconds() {
					past++
				}
			case x.Terminal() || !reachable:
				past++
			case w.now.UnixMilli()-x.Record.DesiredAt < time.Minute.Milliseconds():
				waited++
			}
		}
		most := 1
		if startFirst {
			most = 2
		}
		if live > most {
			t.Fatalf("slot %s has %d live tasks:%s", key, live, w.print())
		}
		if live > 0 {
			occupied++
		}
		limit := w.history
		if n := w.specs[string(w.service.TaskDigest)].GetRestart().GetMaxAttempts(); n > 0 { // all specs have the same
			limit = int64(n) + 1
		}
		if live == 0 || slices.ContainsFunc(ts, func(x *state.Task) bool { return state.Finished(x.Record) }) {
			limit = max(limit, int64(live)+1)
		}
		if past > 0 && int64(past+live) > limit {
			t.Fatalf("slot %s has %d records of the past, limit is %d:%s", key, past, limit, w.print())
		}
		if started[key] && waited > 0 {
			t.Fatalf("slot %s starts a task before the old one has stopped:%s", key, w.print())
		}
	}
	if n, ok := plan.Replicas(w.service); ok && occupied > n {
		t.Fatalf("%d slots have live tasks, want at most %d:%s", occupied, n, w.print())
	}
	return p
}

func (w *world) bySlot() map[string][]*state.Task {
	m := map[string][]*state.Task{}
	for _, t := range w.sorted() {
		_, slot, _ := state.SplitKey(t.Key)
		m[slot] = append(m[slot], t)
	}
	return m
}

// checkEnd checks that exactly the slots that should be there run one task of
// the service's spec, or have finished by their restart policy.
func (w *world) checkEnd(t *rapid.T, want []string, p *musterv1.RestartPolicy) {
	unlimited := p.MaxAttempts == 0 && (p.Condition == 0 || p.Condition == musterv1.RestartPolicy_ANY)
	occupied := 0
	for slot, ts := range w.bySlot() {
		live := 0
		finished := slices.ContainsFunc(ts, func(x *state.Task) bool { return state.Finished(x.Record) })
		for _, x := range ts {
			if !x.Live() {
				continue
			}
			live++
			if x.State() != musterv1.TaskState_RUNNING || string(x.Record.SpecDigest) != string(state.EffectiveSpec(w.service, w.rollout).Digest) && !finished {
				t.Fatalf("slot %s does not run the service's spec:%s", slot, w.print())
			}
		}
		if live > 1 || live == 0 && (!finished || unlimited) {
			t.Fatalf("slot %s has %d live tasks in the end:%s", slot, live, w.print())
		}
		if live == 1 || finished {
			occupied++
		}
	}
	if occupied != len(want) {
		t.Fatalf("%d slots in the end, want %v:%s", occupied, want, w.print())
	}
	if r := w.rollout; r != nil && r.SpecVersion != w.service.SpecVersion {
		t.Fatal(fmt.Sprintf("rollout %v is of another version than %d", r, w.service.SpecVersion))
	} else if s := r.GetState(); s == musterv1.UpdateStatus_UPDATING || s == musterv1.UpdateStatus_ROLLBACK_STARTED {
		t.Fatalf("rollout %v has not ended", r)
	}
}
