package embedded_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
)

func txn(t testing.TB, s kv.KV, ops ...kv.Op) []kv.Pair {
	t.Helper()
	pairs, err := s.Txn(t.Context(), ops)
	if err != nil {
		t.Fatal(err)
	}
	return pairs
}

func acquire(t testing.TB, s kv.KV, key string) kv.Session {
	t.Helper()
	session, err := s.NewSession(t.Context(), kv.SessionConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := session.Acquire(t.Context(), key, []byte("held")); !ok || err != nil {
		t.Fatalf("Acquire = %v, %v", ok, err)
	}
	return session
}

func list(t testing.TB, s kv.KV) ([]kv.Pair, uint64) {
	t.Helper()
	pairs, index, err := s.List(t.Context(), "", kv.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pairs, index
}

func TestRestart(t *testing.T) {
	path := storeFile(t)
	first := open(t, path)
	kept := txn(t, first,
		kv.Op{Verb: kv.Set, Key: "a", Value: []byte("1")}, kv.Op{Verb: kv.Set, Key: "gone", Value: []byte("1")},
		kv.Op{Verb: kv.Set, Key: "empty"}, kv.Op{Verb: kv.Set, Key: "locked-later", Value: []byte("1")})
	txn(t, first, kv.Op{Verb: kv.Delete, Key: "gone"})
	acquire(t, first, "lock")
	acquire(t, first, "locked-later")
	txn(t, first, kv.Op{Verb: kv.Set, Key: "lock", Value: []byte("written while held")})
	_, newest := list(t, first)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Get(t.Context(), "a"); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("Get after Close: error = %v, want ErrUnavailable", err)
	}

	second := open(t, path)
	want := []kv.Pair{{Key: "a", Value: []byte("1"), Index: kept[0].Index}, {Key: "empty", Index: kept[0].Index}}
	pairs, index := list(t, second)
	if diff := cmp.Diff(want, pairs); diff != "" {
		t.Errorf("after the restart, when locks have ended with the process (-want +got):\n%s", diff)
	}
	if index < newest {
		t.Errorf("the newest index went from %d to %d", newest, index)
	}
	again := txn(t, second, kv.Op{Verb: kv.CAS, Key: "a", Value: []byte("2"), Index: kept[0].Index})
	if again[0].Index <= newest {
		t.Errorf("index %d after the restart, %d before it: it must grow", again[0].Index, newest)
	}
}

// TestIndexOfLocksIsNotRepeated restarts after changes that leave no key behind.
func TestIndexOfLocksIsNotRepeated(t *testing.T) {
	path := storeFile(t)
	var last uint64
	for range 3 {
		s := open(t, path)
		acquire(t, s, "lock")
		p, err := s.Get(t.Context(), "lock")
		if err != nil {
			t.Fatal(err)
		}
		if p.Index <= last {
			t.Errorf("index %d was handed out after %d", p.Index, last)
		}
		_, last = list(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	path := storeFile(t)
	open(t, path)
	if s, err := embedded.Open(embedded.Config{Path: path}); err == nil {
		_ = s.Close()
		t.Fatal("one file was opened twice")
	}
}

func TestForeignFileIsRefused(t *testing.T) {
	path := storeFile(t)
	if err := os.WriteFile(path, []byte(strings.Repeat("not a store", 4096)), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := embedded.Open(embedded.Config{Path: path}); err == nil {
		_ = s.Close()
		t.Fatal("a foreign file was opened")
	}
}

// TestAcknowledgedWritesOutliveAKill kills a process that writes from many
// goroutines, and looks for every write that was acknowledged.
func TestAcknowledgedWritesOutliveAKill(t *testing.T) {
	path := storeFile(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestWriteUntilKilled$")
	child.Env = append(os.Environ(), "WRITE_UNTIL_KILLED="+path)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	acknowledged := map[string]uint64{}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		key, index, ok := strings.Cut(lines.Text(), " ")
		if !ok || !strings.HasPrefix(key, "w/") {
			continue
		}
		n, err := strconv.ParseUint(index, 10, 64)
		if err != nil {
			break // the line that the kill cut off
		}
		acknowledged[key] = n
		if len(acknowledged) == 300 {
			_ = child.Process.Kill()
		}
	}
	_ = child.Wait()
	if len(acknowledged) < 300 {
		t.Fatalf("the child wrote %d keys and ended", len(acknowledged))
	}
	s := open(t, path)
	for key, index := range acknowledged {
		p, err := s.Get(t.Context(), key)
		if err != nil || p.Index != index {
			t.Errorf("acknowledged %q at index %d; after the kill: %+v, %v", key, index, p, err)
		}
	}
}

// TestWriteUntilKilled is the process that the test above kills.
func TestWriteUntilKilled(t *testing.T) {
	path := os.Getenv("WRITE_UNTIL_KILLED")
	if path == "" {
		return // run as part of the suite: there is nothing to write
	}
	s := open(t, path)
	for c := range 8 {
		go func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("w/%d/%d", c, i)
				pairs, err := s.Txn(t.Context(), []kv.Op{{Verb: kv.Set, Key: key, Value: []byte(key)}})
				if err != nil {
					return
				}
				if _, err := fmt.Printf("%s %d\n", key, pairs[0].Index); err != nil {
					return
				}
			}
		}()
	}
	<-t.Context().Done()
}
