package faults_test

import (
	"context"
	"fmt"
	"syscall"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// TestTakeOver has parts of a cluster with two replicas of each manager end in order,
// die, and stand still, and the others do their work. How soon they do is measured by
// the benchmark takeover; that nothing is waited for, by the tests of internal/shards
// and internal/kv/consul.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	b := newBench(t, cluster.Config{})
	for _, d := range daemons {
		t.Run(d.name+" ended in order", func(t *testing.T) { b.takeOver(t, d.name, d.aim, b.endInOrder) })
		t.Run(d.name+" killed", func(t *testing.T) { b.takeOver(t, d.name, d.aim, b.kill) })
		t.Run(d.name+" stopped", func(t *testing.T) { b.takeOver(t, d.name, d.aim, b.stop) })
	}
	t.Run("apid killed", b.killAPI)
	t.Run("statuses", b.statuses)
	t.Run("restart a part", func(t *testing.T) {
		b.restart(t, b.Replicas("apid")[:1], b.Replicas("schedulerd"), b.Replicas("dispatcherd"))
	})
	t.Run("restart all", func(t *testing.T) { b.restart(t, b.Names()) })
	t.Run("remove all", func(t *testing.T) { removeAll(t, b.Rig) })
}

// takeOver takes a replica away and asks at that moment for changes that need it. Others
// take all its shards and do the work, each piece once. When the replica is back it
// changes nothing, and has its share again.
func (b *bench) takeOver(t *testing.T, daemon string, aim func(*bench, *testing.T, string) target, away func(*testing.T, string) (back func())) {
	a := aim(b, t, daemon)
	back := away(t, a.victim)
	ok(t, a.atOnce(t.Context()))
	wait.Within(t, waitTimeout, "others have all shards", func(ctx context.Context) error { return b.without(ctx, daemon, a.victim) })
	before := b.picture(t)
	back()
	b.settle(t)
	if err := rig.Same(before, b.picture(t)); err != nil {
		t.Errorf("when %s was back: %v", a.victim, err)
	}
	b.madeOnce(t)
	b.unmoved(t)
}

// madeOnce fails the test if more tasks were made than were asked for: two replicas that
// work on a service at the same time would make each its own.
func (b *bench) madeOnce(t *testing.T) {
	t.Helper()
	made := map[string]uint64{}
	for _, task := range b.picture(t) {
		made[task.ServiceId]++
	}
	for id, size := range b.sizes {
		if made[id] != size {
			t.Errorf("%d tasks were made for service %s, want %d", made[id], id, size)
		}
	}
}

// endInOrder asks a replica to end. The function that it returns starts the replica
// again, once it has ended.
func (b *bench) endInOrder(t *testing.T, name string) (back func()) {
	p := b.Process(name)
	ok(t, p.Signal(syscall.SIGTERM))
	return func() {
		wait.True(t, name+" has ended", p.Ended)
		if code := p.ExitCode(); code != 0 {
			t.Errorf("%s ended with code %d:\n%s", name, code, p.Tail())
		}
		ok(t, b.StartManager(name))
	}
}

// kill kills a replica, which the function that it returns starts again.
func (b *bench) kill(t *testing.T, name string) (back func()) {
	ok(t, b.Process(name).Kill())
	return func() { ok(t, b.StartManager(name)) }
}

// stop has a replica stand still until the function that it returns is called. What
// the replica is doing at that moment it continues then.
func (b *bench) stop(t *testing.T, name string) (back func()) {
	p := b.Process(name)
	resume := undo(t, func() error { return p.Signal(syscall.SIGCONT) })
	ok(t, p.Signal(syscall.SIGSTOP))
	return func() { ok(t, resume()) }
}

// picture returns all tasks.
func (b *bench) picture(t *testing.T) map[string]*musterv1.Task {
	t.Helper()
	all, err := b.Tasks(t.Context(), "")
	ok(t, err)
	tasks := map[string]*musterv1.Task{}
	for _, task := range all {
		tasks[task.Id] = task
	}
	return tasks
}

// killAPI kills the replica that users speak to: they continue with the other.
func (b *bench) killAPI(t *testing.T) {
	back := b.kill(t, "apid")
	b.change(t)
	back()
	b.settle(t)
	b.unmoved(t)
}

// statuses kills a dispatcher while tasks of its workers end: what they ended
// with is told later.
func (b *bench) statuses(t *testing.T) {
	spec := rig.Processes("brief", 6, "sleep 1; exit 3")
	spec.Task.Restart = &musterv1.RestartPolicy{Condition: musterv1.RestartPolicy_NONE}
	id, err := b.Create(t.Context(), spec)
	ok(t, err)
	wait.Within(t, waitTimeout, "brief tasks run", func(ctx context.Context) error {
		tasks, err := b.Tasks(ctx, id)
		for _, task := range tasks {
			if task.Status.GetState() < musterv1.TaskState_RUNNING {
				err = fmt.Errorf("task %s is %s", task.Name, task.Status.GetState())
			}
		}
		if len(tasks) != 6 {
			err = fmt.Errorf("there are %d tasks", len(tasks))
		}
		return err
	})
	for _, name := range b.Replicas("dispatcherd") {
		ok(t, b.Process(name).Kill())
	}
	wait.Within(t, waitTimeout, "brief tasks have ended", func(context.Context) error {
		running, err := b.TaskProcesses()
		if err != nil {
			return err
		}
		for _, ps := range running {
			if ps[0].Service == id {
				return fmt.Errorf("there is %s", ps[0])
			}
		}
		return nil
	})
	for _, name := range b.Replicas("dispatcherd") {
		ok(t, b.StartManager(name))
	}
	wait.Within(t, waitTimeout, "it is known what brief tasks ended with", func(ctx context.Context) error {
		tasks, err := b.Tasks(ctx, id)
		for _, task := range tasks {
			if task.Status.GetState() != musterv1.TaskState_FAILED || task.Status.Runtime.GetExitCode() != 3 {
				err = fmt.Errorf("task %s is %s, exit code %d", task.Name, task.Status.GetState(), task.Status.Runtime.GetExitCode())
			}
		}
		if len(tasks) != 6 {
			err = fmt.Errorf("there are %d tasks", len(tasks))
		}
		return err
	})
	ok(t, b.Remove(t.Context(), id))
	b.settle(t)
	b.unmoved(t)
}

// restart kills some managers, at once, and starts them again.
func (b *bench) restart(t *testing.T, some ...[]string) {
	for _, names := range some {
		for _, name := range names {
			ok(t, b.Process(name).Kill())
		}
	}
	for _, names := range some {
		for _, name := range names {
			ok(t, b.StartManager(name))
		}
	}
	b.settle(t)
	b.unmoved(t)
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	ok(t, b.grow(ctx, b.services[1]))
}
