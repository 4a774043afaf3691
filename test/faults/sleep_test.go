package faults_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/consul"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// TestSleepers stops one replica of every manager at once, in the middle of changes,
// for a minute. The others do all the work. When the sleepers wake they write
// nothing: neither what they were about to, nor what they believe.
func TestSleepers(t *testing.T) {
	t.Parallel()
	b := newBench(t, cluster.Config{})
	sleepers := map[string]string{"apid": "apid-2", "allocatord": b.owners(t, "allocatord")[0]}
	for _, daemon := range []string{"orchestratord", "schedulerd", "dispatcherd"} {
		sleepers[daemon] = cluster.Replica(daemon, 2)
	}
	all := func(sig syscall.Signal) {
		for _, name := range sleepers {
			ok(t, b.Process(name).Signal(sig))
		}
	}
	// Together they need all shards of all daemons, or nearly.
	var everything target
	for _, id := range slices.Concat(b.services, slices.Collect(maps.Values(b.onNode))) {
		everything.changes = append(everything.changes, func(ctx context.Context) error { return b.grow(ctx, id) })
	}
	for _, id := range b.endpoints {
		everything.changes = append(everything.changes, func(ctx context.Context) error { return b.publish(ctx, id) })
	}
	change := func() {
		if err := everything.atOnce(t.Context()); err != nil {
			t.Error(err)
		}
	}
	underWay := make(chan struct{})
	go func() {
		defer close(underWay)
		change()
	}()
	asleep := time.NewTimer(time.Minute)
	all(syscall.SIGSTOP)
	<-underWay
	wait.Within(t, waitTimeout, "others have all shards", func(ctx context.Context) error {
		var errs []error
		for daemon, name := range sleepers {
			if daemon != "apid" {
				errs = append(errs, b.without(ctx, daemon, name))
			}
		}
		return errors.Join(errs...)
	})
	for range 3 {
		change()
	}
	b.unmoved(t)
	<-asleep.C
	var kept map[string]uint64
	wait.Within(t, waitTimeout, "nothing is written any more", func(context.Context) error {
		before := kept
		if kept = b.kept(t); !maps.Equal(before, kept) {
			<-time.After(still)
			return errors.New("something was written just now")
		}
		return nil
	})
	tasks := b.picture(t)
	all(syscall.SIGCONT)
	b.settle(t)
	b.unmoved(t)
	if err := rig.Same(tasks, b.picture(t)); err != nil {
		t.Errorf("when the sleepers woke: %v", err)
	}
	now := b.kept(t)
	maps.DeleteFunc(now, func(key string, index uint64) bool { return kept[key] == index })
	if len(now) > 0 {
		t.Errorf("when the sleepers woke, there was written at %v", slices.Sorted(maps.Keys(now)))
	}
}

// still is for how long nothing is written where nothing is to do.
const still = time.Second

// kept returns when each key was last written that the cluster keeps in Consul,
// except for those that say which process works on what: members, locks, and the
// fences of schedulers and allocators, of which those of schedulers are for one release
// among the placements too.
func (b *bench) kept(t *testing.T) map[string]uint64 {
	t.Helper()
	s, err := consul.New(consul.Config{Address: b.Consul.Address})
	ok(t, err)
	defer func() { _ = s.Close() }()
	pairs, _, err := s.List(t.Context(), "muster/", kv.ListOptions{})
	ok(t, err)
	found := map[string]uint64{}
	for _, p := range pairs {
		table, rest, _ := strings.Cut(strings.TrimPrefix(p.Key, "muster/"), "/")
		if table == "changes" {
			// The mark of a table is written whenever the table is.
			table = rest
		}
		if table != "members" && table != "locks" && table != "placements" && table != "scheduler_fences" && table != "allocator_fences" {
			found[p.Key] = p.Index
		}
	}
	if len(found) == 0 {
		t.Fatal("nothing is kept in Consul")
	}
	return found
}
