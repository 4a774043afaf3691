package seal_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/seal"
)

func newKey(t *testing.T) *seal.Key {
	t.Helper()
	key, err := seal.MakeKey(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestDataOpensAfterAnyRotation seals data with one of several keys, and rewraps it any
// number of times. A ring with the last key alone opens it, and one without does not.
func TestDataOpensAfterAnyRotation(t *testing.T) {
	keys := []*seal.Key{newKey(t), newKey(t), newKey(t)}
	all := seal.NewKeyring(keys...)
	rapid.Check(t, func(t *rapid.T) {
		plain := rapid.SliceOf(rapid.Byte()).Draw(t, "data")
		use := rapid.String().Draw(t, "use")
		last := rapid.SampledFrom(keys).Draw(t, "key")
		e, sealed, err := last.Envelop(use, plain)
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(0, 4).Draw(t, "rotations") {
			last = rapid.SampledFrom(keys).Draw(t, "next key")
			if e, err = all.Rewrap(e, use, last); err != nil {
				t.Fatal(err)
			}
		}
		if e.KeyName != last.Name() {
			t.Fatalf("envelope names %s, want %s", e.KeyName, last.Name())
		}
		if got, err := seal.NewKeyring(last).Open(e, use, sealed); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("with its key: %q, %v", got, err)
		}
		if _, err := all.Open(e, use+"x", sealed); err == nil {
			t.Fatal("it opens for another use")
		}
		for _, k := range keys {
			if k == last {
				continue
			}
			_, err := seal.NewKeyring(k).Open(e, use, sealed)
			if missing := (*seal.NoKeyError)(nil); !errors.As(err, &missing) || missing.Name != last.Name() {
				t.Fatalf("without its key: %v", err)
			}
			// A record that names another key does not open either.
			wrong := proto.CloneOf(e)
			wrong.KeyName = k.Name()
			if _, err := all.Open(wrong, use, sealed); err == nil {
				t.Fatal("it opens with a key that did not seal it")
			}
		}
	})
}

// TestChangedBytesDoNotOpen changes one bit of the sealed data or of the data key.
func TestChangedBytesDoNotOpen(t *testing.T) {
	key := newKey(t)
	ring := seal.NewKeyring(key)
	rapid.Check(t, func(t *rapid.T) {
		e, sealed, err := key.Envelop("use", rapid.SliceOf(rapid.Byte()).Draw(t, "data"))
		if err != nil {
			t.Fatal(err)
		}
		target := sealed
		if rapid.Bool().Draw(t, "of the data key") {
			target = e.DataKey
		}
		target[rapid.IntRange(0, len(target)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if got, err := ring.Open(e, "use", sealed); !errors.Is(err, seal.ErrSealed) {
			t.Fatalf("%q, %v", got, err)
		}
	})
}

func TestSecretOpensUnderItsOwnIDOnly(t *testing.T) {
	key := newKey(t)
	e, sealed, err := key.Envelop(seal.SecretUse("a"), []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	record := &recordv1.Secret{Envelope: e}
	if got, err := seal.NewKeyring(key).OpenSecret("a", record, sealed); err != nil || string(got) != "data" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := seal.NewKeyring(key).OpenSecret("b", record, sealed); !errors.Is(err, seal.ErrSealed) {
		t.Errorf("as another secret: %q, %v", got, err)
	}
	if _, err := (*seal.Keyring)(nil).OpenSecret("a", record, sealed); err == nil {
		t.Error("it opens without any key")
	}
}

// FuzzOpen opens bytes that no key has sealed.
func FuzzOpen(f *testing.F) {
	path := filepath.Join(f.TempDir(), "key")
	key, err := seal.MakeKey(path)
	if err != nil {
		f.Fatal(err)
	}
	e, sealed, err := key.Envelop("use", []byte("data"))
	if err != nil {
		f.Fatal(err)
	}
	ring := seal.NewKeyring(key)
	f.Add(e.DataKey[:10], sealed)
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, dataKey, sealed []byte) {
		if _, err := ring.Open(&recordv1.Envelope{KeyName: key.Name(), DataKey: dataKey}, "use", sealed); err == nil {
			t.Error("foreign bytes open")
		}
	})
}
