package shards_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap/zaptest"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/shards"
)

// runDirectory starts a directory, which is stopped when the test ends.
func runDirectory(t *testing.T, store kv.KV) *shards.Directory {
	d := shards.NewDirectory(store, prefix, subsystem, zaptest.NewLogger(t))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run of the directory: %v", err)
		}
	})
	return d
}

// owners returns the instance of each shard's owner.
func owners(d *shards.Directory) map[int]string {
	names := map[int]string{}
	for shard, m := range d.Owners() {
		names[shard] = m.Instance
	}
	return names
}

func instances(d *shards.Directory) []string {
	var names []string
	for _, m := range d.Members() {
		names = append(names, m.Instance)
	}
	return names
}

func TestDirectoryIsEmptyWithoutMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := runDirectory(t, newCluster(t, 4).store)
		if err := d.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, ok := d.Owner(0); ok || len(d.Owners()) != 0 || len(d.Members()) != 0 {
			t.Errorf("an empty cluster has owners %v and members %v", d.Owners(), d.Members())
		}
	})
}

func TestDirectoryShowsOwnersAndMembersAfterEachChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4)
		d := runDirectory(t, c.store)
		expect := func(members []string, owner string) {
			t.Helper()
			synctest.Wait()
			if diff := cmp.Diff(members, instances(d)); diff != "" {
				t.Errorf("members (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(map[int]string{0: owner, 1: owner, 2: owner, 3: owner}, owners(d)); owner != "" && diff != "" {
				t.Errorf("owners (-want +got):\n%s", diff)
			}
		}
		changed := d.Changed()
		a := c.join()
		c.settled(a)
		expect([]string{a.name}, a.name)
		select {
		case <-changed:
		default:
			t.Error("Changed is not closed after a change")
		}
		if m, ok := d.Owner(3); !ok || m.Address != a.name+":1" || m.Daemon != "testd" {
			t.Errorf("Owner(3) = %+v, %v", m, ok)
		}
		b := c.join()
		c.settled(a, b)
		expect([]string{a.name, b.name}, "")
		c.crash(a)
		c.settled(b)
		expect([]string{b.name}, b.name)
	})
}

// TestDirectoryKeepsOwnersWhileStoreIsUnavailable also checks that the directory shows
// the changes of that time once the store is available again.
func TestDirectoryKeepsOwnersWhileStoreIsUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		a := c.join()
		c.settled(a)
		store := kvfault.New(c.store)
		mend := store.Cut()
		d := runDirectory(t, store)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := d.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Ready without a store: error = %v, want the context's", err)
		}
		mend()
		if err := d.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		mend = store.Cut()
		b := c.join()
		c.crash(a)
		c.settled(b)
		if m, ok := d.Owner(0); !ok || m.Instance != a.name {
			t.Errorf("Owner(0) = %+v, %v without a store, want %s as before", m, ok, a.name)
		}
		mend()
		c.until(func() bool { m, ok := d.Owner(0); return ok && m.Instance == b.name })
	})
}

// TestUnreadableRecordsAreSkipped writes records that only another version can read.
func TestUnreadableRecordsAreSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		session, err := c.store.NewSession(t.Context(), kv.SessionConfig{})
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"/members/work/odd", "/locks/work/odd", "/locks/work/7/odd"} {
			if ok, err := session.Acquire(t.Context(), prefix+key, []byte("{")); !ok || err != nil {
				t.Fatalf("Acquire(%q) = %v, %v", key, ok, err)
			}
		}
		a := c.join()
		c.settled(a)
		d := runDirectory(t, c.store)
		if err := d.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[int]string{0: a.name, 1: a.name}, owners(d)); diff != "" {
			t.Errorf("owners (-want +got):\n%s", diff)
		}
	})
}

// switched is a store that can be replaced by another one, as a restore does. Lists
// that wait at the first store are not woken.
type switched struct {
	kv.KV
	inner atomic.Pointer[embedded.KV]
}

func (s *switched) List(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	return s.inner.Load().List(ctx, prefix, opt)
}

// TestDirectoryShowsRestoredStateWithinAMinute restores the store between two lists.
func TestDirectoryShowsRestoredStateWithinAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		open := func() *embedded.KV {
			store, err := embedded.Open(embedded.Config{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = store.Close() })
			return store
		}
		before, after := open(), open()
		session, err := before.NewSession(t.Context(), kv.SessionConfig{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = session.Close(context.WithoutCancel(t.Context())) })
		if ok, err := session.Acquire(t.Context(), prefix+"/locks/"+subsystem+"/3", []byte(`{"instance":"a"}`)); !ok || err != nil {
			t.Fatalf("Acquire = %v, %v", ok, err)
		}
		store := &switched{KV: before}
		store.inner.Store(before)
		d := runDirectory(t, store)
		<-time.After(5 * time.Minute)
		if m, ok := d.Owner(3); !ok || m.Instance != "a" {
			t.Errorf("Owner = %v, %v, want a", m, ok)
		}
		store.inner.Store(after)
		<-time.After(time.Minute + time.Second)
		if m, ok := d.Owner(3); ok {
			t.Errorf("Owner = %v a minute after the store was restored, want none", m)
		}
	})
}
