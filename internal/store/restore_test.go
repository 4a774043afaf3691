package store_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/test/kit/consultest"
)

// TestStoresAdoptTheStateOfARestoredServer restores a real Consul from a snapshot. All
// stores must show the restored state: also one that only reads, and also if Consul was
// restarted in between.
func TestStoresAdoptTheStateOfARestoredServer(t *testing.T) {
	server := consultest.Start(t)
	// Every update writes both tables.
	table, mirror := numbers("counters"), numbers("mirror")
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("away=%v", away), func(t *testing.T) {
			writer, _ := open(t, store.Options{KV: server.KV(t)}, table, mirror)
			reader, _ := open(t, store.Options{KV: server.KV(t)}, table, mirror)
			key := fmt.Sprintf("away-%v", away)
			see := func(want int) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				for sn := reader.Snapshot(); count(table, sn, key) != want; {
					next, err := reader.Wait(ctx, sn, table)
					if err != nil {
						t.Fatalf("the reader sees %d, want %d: %v", count(table, sn, key), want, err)
					}
					sn = next
				}
			}
			set := func(n int) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				if err := writer.Update(ctx, func(tx *store.Tx) error {
					table.Put(tx, key, n)
					mirror.Put(tx, key, n)
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}
			set(1)
			see(1)
			var snapshot bytes.Buffer
			if err := server.Save(t.Context(), &snapshot); err != nil {
				t.Fatal(err)
			}
			for n := 2; n < 10; n++ {
				set(n)
			}
			see(9)
			epoch := reader.Snapshot().Epoch()
			if err := server.Restore(t.Context(), snapshot.Bytes()); err != nil {
				t.Fatal(err)
			}
			if away {
				if err := server.Kill(); err != nil {
					t.Fatal(err)
				}
				if err := server.Restart(); err != nil {
					t.Fatal(err)
				}
			}
			see(1)
			if n := count(mirror, reader.Snapshot(), key); n != 1 {
				t.Errorf("one table shows the restored state, and another shows %d", n)
			}
			if now := reader.Snapshot().Epoch(); now == epoch {
				t.Errorf("epoch = %d before and after the restore", now)
			}
			set(20)
			see(20)
		})
	}
}
