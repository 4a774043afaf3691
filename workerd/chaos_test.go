package workerd_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	. "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/workerd"
)

// TestWhateverHappensEveryTaskEndsUpAsItShould lets a dispatcher assign, change
// and withdraw tasks at random, with sessions that break, workers that start
// again with and without their memory, and an executor that is away at times.
// Reported states must never fall, and in the end exactly what is assigned must
// be there, as it is desired.
func TestWhateverHappensEveryTaskEndsUpAsItShould(t *testing.T) {
	t.Parallel()
	for seed := range uint64(30) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, 0))
				dataDir := ""
				if random.IntN(2) == 0 {
					dataDir = t.TempDir()
				}
				chaos(t, random, dataDir, nil)
			})
		})
	}
}

// world is what the managers know.
type world struct {
	t        *testing.T
	random   *rand.Rand
	tasks    map[string]assignment
	reported map[string]TaskState
	// forgets says that the worker's disk takes no writes at times. A worker that is
	// started then may not remember all that it reported, and say less at first: of
	// that the managers, which let no state fall, take no notice.
	forgets bool
}

// learn takes in what a session reported, and checks that nothing fell.
func (w *world) learn(s *session, from int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, report := range s.reports[from:] {
		for _, r := range report.GetStatuses() {
			state := r.GetStatus().GetState()
			if state < w.reported[r.GetTaskId()] {
				if w.forgets {
					continue
				}
				w.t.Errorf("%s fell from %s to %s", r.GetTaskId(), w.reported[r.GetTaskId()], state)
			}
			w.reported[r.GetTaskId()] = state
		}
	}
	return len(s.reports)
}

// set returns all assignments, with what is known of them.
func (w *world) set() []assignment {
	var all []assignment
	for _, id := range slices.Sorted(maps.Keys(w.tasks)) {
		all = append(all, w.tasks[id].known(w.reported[id]))
	}
	return all
}

// change makes one random change, and sends it if there is a session.
func (w *world) change(s *session, n int) {
	ids := slices.Sorted(maps.Keys(w.tasks))
	pick := func() string { return ids[w.random.IntN(len(ids))] }
	var changed []assignment
	var removed []string
	switch w.random.IntN(4) {
	case 0, 1:
		scripts := []map[string]any{
			nil, nil, {"prepareDelay": "700ms"}, {"startDelay": "300ms", "failStart": "busy", "failTimes": 1, "temporary": true},
			{"runFor": "2s"}, {"runFor": "1s", "exitCode": 1}, {"ignoreShutdown": true},
		}
		desired := []TaskState{ready, running, running}[w.random.IntN(3)]
		task := nullTask(fmt.Sprint("t", n), desired, scripts[w.random.IntN(len(scripts))])
		w.tasks[task.Id] = task
		changed = append(changed, task)
	case 2:
		if len(ids) == 0 {
			return
		}
		task := w.tasks[pick()]
		w.tasks[task.Id] = task.desire(max(task.DesiredState, []TaskState{running, shutdown}[w.random.IntN(2)]))
		changed = append(changed, w.tasks[task.Id])
	case 3:
		if len(ids) == 0 {
			return
		}
		id := pick()
		delete(w.tasks, id)
		removed = append(removed, id)
	}
	if s != nil {
		s.assign(false, changed, removed...)
	}
}

// chaos lets the worker keep what it remembers in a directory, unless that is empty.
// Vex, if given, is called now and then: to fill that directory's disk, or to make
// room again.
func chaos(t *testing.T, random *rand.Rand, dataDir string, vex func(bool)) {
	n := newNetwork()
	d, _ := n.serve(t, "d1:1")
	set, a := ableSet(t)
	begin := func() *node {
		return start(t, n, set, func(cfg *workerd.Config) {
			if dataDir != "" {
				cfg.DataDir = dataDir
			}
		})
	}
	node := begin()
	w := &world{t: t, random: random, tasks: map[string]assignment{}, reported: map[string]TaskState{}, forgets: vex != nil}
	connect := func() (*session, int) {
		s := d.await(t)
		s.welcome()
		s.assign(true, w.set())
		return s, 0
	}
	s, seen := connect()
	for i := range 60 {
		kinds := 12
		if vex != nil {
			kinds = 13
		}
		switch random.IntN(kinds) {
		case 0:
			w.learn(s, seen)
			s.end <- status.Error(codes.Unavailable, "session breaks")
			w.change(nil, i)
			s, seen = connect()
		case 1:
			settle(0)
			node.stop()
			w.learn(s, seen)
			w.change(nil, i)
			node = begin()
			s, seen = connect()
		case 2:
			a.set(func(a *able) { a.away = !a.away })
		case 12:
			vex(random.IntN(2) == 0)
		default:
			w.change(s, i)
		}
		settle(time.Duration(random.IntN(500)) * time.Millisecond)
		seen = w.learn(s, seen)
	}
	a.set(func(a *able) { a.away = false })
	if vex != nil {
		vex(false)
	}
	settle(2 * time.Minute)
	w.learn(s, seen)
	wantHeld(t, a.Executor, touched(w, a.Executor)...)
	for id, task := range w.tasks {
		state := w.reported[id]
		switch {
		case task.DesiredState == shutdown && state < complete,
			task.DesiredState == running && state < running,
			task.DesiredState == ready && state < ready:
			t.Errorf("%s is %s and desired %s", id, state, task.DesiredState)
		}
	}
	settle(0)
	node.stop()
}

// touched returns the tasks that the executor must hold: all, but for those that
// were told to stop while they waited for a disk.
func touched(w *world, e *null.Executor) []string {
	listed, err := e.List(w.t.Context(), "node1")
	if err != nil {
		w.t.Fatal(err)
	}
	var ids []string
	for id, task := range w.tasks {
		held := slices.ContainsFunc(listed, func(l sdk.Listed) bool { return l.TaskID == id })
		if held || !w.forgets || task.DesiredState < shutdown {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}
