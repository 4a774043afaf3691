package embedded_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
)

// TestBackup takes copies during writes. Each opens, and holds all that
// was answered before it was begun, and nothing torn: both keys of a transaction
// or neither.
func TestBackup(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "store.db"))
	answered, stop := make(chan int), make(chan struct{})
	var writer sync.WaitGroup
	defer writer.Wait()
	defer close(stop)
	writer.Go(func() {
		defer close(answered)
		for i := 0; ; i++ {
			ops := []kv.Op{{Verb: kv.Set, Key: fmt.Sprintf("a/%d", i), Value: []byte("x")}, {Verb: kv.Set, Key: fmt.Sprintf("b/%d", i), Value: []byte("x")}}
			if _, err := s.Txn(t.Context(), ops); err != nil {
				t.Error(err)
				return
			}
			select {
			case answered <- i:
			case <-stop:
				return
			}
		}
	})
	for n := range 5 {
		for range 20 {
			<-answered
		}
		last := <-answered
		path := filepath.Join(dir, fmt.Sprintf("copy%d.db", n))
		file, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		var size int64
		if err := s.Backup(file, func(n int64) { size = n }); err != nil {
			t.Fatal(err)
		}
		if info, err := file.Stat(); err != nil || info.Size() != size {
			t.Errorf("%v: copy of %d bytes was said to have %d", err, info.Size(), size)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
		restored := open(t, path)
		counts := map[string]int{}
		for _, prefix := range []string{"a/", "b/"} {
			pairs, _, err := restored.List(t.Context(), prefix, kv.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			counts[prefix] = len(pairs)
		}
		if counts["a/"] != counts["b/"] || counts["a/"] <= last {
			t.Errorf("copy %d has %v keys; %d transactions were answered before", n, counts, last+1)
		}
	}
	memory, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = memory.Close() }()
	if err := memory.Backup(os.Stderr, nil); err == nil {
		t.Error("a store without a file was backed up")
	}
}
