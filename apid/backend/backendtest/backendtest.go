// Package backendtest runs a backend of apid on a store in memory, for tests of the
// packages that use one.
package backendtest

import (
	"context"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// Start runs a store in memory until the test ends, and returns a backend of it.
func Start(t *testing.T) *backend.Backend {
	t.Helper()
	return start(t, nil, func(space kv.KV) kv.KV { return space })
}

// StartSealed does it with the cluster's keys.
func StartSealed(t *testing.T, keys *seal.Keyring) *backend.Backend {
	t.Helper()
	return start(t, keys, func(space kv.KV) kv.KV { return space })
}

// StartWith does it with a store that wrap has wrapped.
func StartWith(t *testing.T, wrap func(space kv.KV) kv.KV) *backend.Backend {
	t.Helper()
	return start(t, nil, wrap)
}

func start(t *testing.T, keys *seal.Keyring, wrap func(space kv.KV) kv.KV) *backend.Backend {
	t.Helper()
	space, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	tables := state.NewTables()
	st, err := store.New(store.Options{KV: wrap(space), Prefix: "muster"}, append(objects.Tables(tables), tables.Tokens)...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = st.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if err := space.Close(); err != nil {
			t.Error(err)
		}
	})
	b := backend.New(backend.Options{
		Store: st, Tables: tables, View: objects.New(st, tables, keys, 10), Log: zap.NewNop(), WriteTimeout: 10 * time.Second, ReadyTimeout: time.Second,
	})
	if err := b.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}
