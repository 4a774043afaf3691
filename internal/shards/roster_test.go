package shards_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/zap/zaptest"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/shards"
)

// TestRosterNeedsTwoListsForAllSubsystems runs directories of three subsystems over one
// roster. Each shows its own subsystem, and the store gets two blocking queries in all.
func TestRosterNeedsTwoListsForAllSubsystems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4)
		k := kvfault.New(c.store)
		session, err := c.store.NewSession(t.Context(), kv.SessionConfig{Name: "test"})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = session.Close(context.WithoutCancel(t.Context())) }()
		names := []string{"one", "two", "three"}
		roster := shards.NewRoster(k, prefix, zaptest.NewLogger(t))
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		running.Go(func() { _ = roster.Run(ctx) })
		directories := map[string]*shards.Directory{}
		for _, name := range names {
			d := roster.Directory(name)
			directories[name] = d
			running.Go(func() { _ = d.Run(ctx) })
			if err := d.Ready(ctx); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := k.Calls(kvfault.List); n != 4 {
			t.Errorf("%d lists, want 4: 2 that were answered and 2 that wait", n)
		}
		for _, name := range names {
			value := []byte(`{"instance":"` + name + `"}`)
			for _, key := range []string{prefix + "/members/" + name + "/" + name, prefix + "/locks/" + name + "/3"} {
				if ok, err := session.Acquire(ctx, key, value); !ok || err != nil {
					t.Fatalf("Acquire = %v, %v", ok, err)
				}
			}
		}
		synctest.Wait()
		for name, d := range directories {
			if m, ok := d.Owner(3); !ok || m.Instance != name || len(d.Owners()) != 1 || len(d.Members()) != 1 {
				t.Errorf("directory of %s: owners %v, members %v", name, d.Owners(), d.Members())
			}
		}
	})
}
