package e2e_test

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/wait"
)

// logs: who follows a service gets the lines of all its tasks, also of those that
// come later, each line once and in order.
func (l *life) logs(t *testing.T) {
	l.follower = l.begin(l.whole, "follower", "service", "logs", "--follow", "--tail", "3", "ticker")
	l.awaitTicks(t, l.awaitRunning(t, "ticker", 6))
	l.ok(t, "service", "scale", "ticker=7", "--timeout", "2m")
	seven := l.awaitRunning(t, "ticker", 7)
	l.awaitTicks(t, seven)

	// Without following, a reader gets only what there is.
	for _, task := range seven {
		if out := l.ok(t, "task", "logs", "--raw", task.Id); !strings.HasPrefix(out, "tick 1 in blue\n") {
			t.Errorf("logs of task %s begin with %.40q", task.Name, out)
		}
	}
	if out := l.ok(t, "service", "logs", "--tail", "1", "web"); strings.Count(out, "| web in blue") != 3 {
		t.Errorf("the last lines of three containers are\n%s", out)
	}
}

// tickLine is a line of the follower: "ticker.3.abcdefghijkl@alpha | tick 17 in blue".
var tickLine = regexp.MustCompile(`^ticker\.(\d+)\.([0-9a-z]{12})@[0-9a-z.-]+ \| tick (\d+) in (\w+)$`)

// awaitTicks waits until the follower has two more lines of each task, and checks
// what it has.
func (l *life) awaitTicks(t *testing.T, run tasks) {
	t.Helper()
	before := l.ticks(t)
	wait.Within(t, runTimeout, "the follower gets lines of all tasks", func(ctx context.Context) error {
		now := l.ticks(t)
		for id, task := range run {
			if now[id[:12]] < max(before[id[:12]]+2, 2) {
				return fmt.Errorf("of task %s it has %d, after %d", task.Name, now[id[:12]], before[id[:12]])
			}
		}
		return nil
	})
}

// ticks returns the last number that the follower has of each task, by the id as
// it is shown. It fails the test if a line is missing, doubled or out of order.
func (l *life) ticks(t *testing.T) map[string]int {
	t.Helper()
	lines, err := l.follower.lines()
	if err != nil {
		t.Fatal(err)
	}
	last := map[string]int{}
	for i, line := range lines {
		if strings.HasPrefix(line, "warning: ") {
			continue
		}
		m := tickLine.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("line %d of the follower is %q", i+1, line)
		}
		n, err := strconv.Atoi(m[3])
		if err != nil {
			t.Fatal(err)
		}
		if before, ok := last[m[2]]; ok && n != before+1 {
			t.Fatalf("line %d of the follower is %q, after number %d of the task", i+1, line, before)
		}
		last[m[2]] = n
	}
	return last
}

// readEvents checks what `muster events` has told all the while.
func (l *life) readEvents(t *testing.T) {
	// What was removed last may be told a moment later.
	wait.Within(t, runTimeout, "events tell of the end of all", func(context.Context) error {
		for key, h := range l.told(t) {
			if h.kind != musterv1.ObjectKind_NODE && !h.deleted {
				return fmt.Errorf("%s %s is there", key, h.name)
			}
		}
		return nil
	})
	l.events.end(t)
	told := l.told(t)
	names := map[string]bool{}
	for key, h := range told {
		if h.kind == musterv1.ObjectKind_SERVICE {
			names[h.name] = true
		}
		if h.kind != musterv1.ObjectKind_NODE && (!h.created || !h.deleted) {
			t.Errorf("%s %s: it was told of as created: %v, as deleted: %v", key, h.name, h.created, h.deleted)
		}
	}
	for _, name := range []string{"ticker", "web", "agent"} {
		if !names[name] {
			t.Errorf("events told nothing of service %s", name)
		}
	}
	t.Logf("events told of %d objects", len(told))
}

// told returns what `muster events` has told so far of each object, by its kind and
// id.
func (l *life) told(t *testing.T) map[string]*history {
	t.Helper()
	lines, err := l.events.lines()
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]*history{}
	for i, line := range lines {
		resp := &musterv1.WatchResponse{}
		if err := protojson.Unmarshal([]byte(line), resp); err != nil {
			t.Fatalf("line %d of events: %v\n%s", i+1, err, line)
		}
		for _, e := range resp.Events {
			key := e.Kind.String() + " " + e.Id
			if told[key] == nil {
				told[key] = &history{}
			}
			if err := told[key].add(e); err != nil {
				t.Fatalf("line %d of events: %s: %v", i+1, key, err)
			}
		}
	}
	return told
}

// history is what events told of one object.
type history struct {
	kind             musterv1.ObjectKind
	name             string
	created, deleted bool
	state, desired   musterv1.TaskState
}

// add takes one event in. An object is created once and deleted once, and the
// states of a task only rise.
func (h *history) add(e *musterv1.WatchEvent) error {
	h.kind = e.Kind
	if s := e.GetService(); s != nil {
		h.name = s.Spec.GetName()
	}
	switch {
	case h.deleted:
		return fmt.Errorf("%s after it was deleted", e.Action)
	case e.Action == musterv1.WatchAction_CREATE && h.created:
		return fmt.Errorf("created twice")
	case e.Action == musterv1.WatchAction_CREATE:
		h.created = true
	case e.Action == musterv1.WatchAction_DELETE:
		h.deleted = true
		return nil
	}
	task := e.GetTask()
	if task.GetStatus().GetState() < h.state || task.GetDesiredState() < h.desired {
		return fmt.Errorf("state %s after %s, desired %s after %s", task.GetStatus().GetState(), h.state, task.GetDesiredState(), h.desired)
	}
	h.state, h.desired = task.GetStatus().GetState(), task.GetDesiredState()
	return nil
}
