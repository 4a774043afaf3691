package embedded

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/musterhq/muster/internal/kv"
)

// TestDiskFailureIsFinal takes the disk away: from then on memory is ahead of
// the file, so nothing may be answered from it.
func TestDiskFailureIsFinal(t *testing.T) {
	s, err := Open(Config{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Txn(t.Context(), []kv.Op{{Verb: kv.Set, Key: "a", Value: []byte("1")}}); err != nil {
		t.Fatal(err)
	}
	if err := s.file.db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{"2", "3"} {
		if _, err := s.Txn(t.Context(), []kv.Op{{Verb: kv.Set, Key: "a", Value: []byte(value)}}); !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("Txn without a disk: error = %v, want ErrUnavailable", err)
		}
		if p, err := s.Get(t.Context(), "a"); !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("Get = %+v, %v, want ErrUnavailable: what it shows is not kept", p, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
