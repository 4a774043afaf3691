package blobs_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/apid/backend/backendtest"
	"github.com/musterhq/muster/apid/blobs"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// data has a chunk that is full, and one that is not.
var data = append(bytes.Repeat([]byte("a"), state.ChunkSize), "rest"...)

type fixture struct {
	*blobs.Blobs
	t *testing.T
}

func start(t *testing.T) fixture { return startWith(t, 0) }

// startWith starts blobs that may have so many bytes together.
func startWith(t *testing.T, most uint64) fixture {
	b := backendtest.Start(t)
	return fixture{blobs.New(b, b.Tables.Blobs, "config", most), t}
}

func (f fixture) write(data []byte) (digest []byte) {
	f.t.Helper()
	digest, err := f.Write(f.t.Context(), data)
	if err != nil {
		f.t.Fatal(err)
	}
	return digest
}

// records returns the records of all blobs and chunks, by key.
func (f fixture) records() map[string]*recordv1.Blob {
	all := map[string]*recordv1.Blob{}
	for e := range f.Tables.Blobs.Scan(f.Snapshot(), "") {
		all[e.Key] = e.Value
	}
	return all
}

func (f fixture) remove(key string) {
	f.t.Helper()
	err := f.Update(f.t.Context(), func(tx *store.Tx) error {
		f.Tables.Blobs.Delete(tx, key)
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f fixture) keep(digest []byte, size uint64) error {
	return f.Update(f.t.Context(), func(tx *store.Tx) error { return f.Keep(tx, digest, size) })
}

func TestDataIsCutIntoChunksUnderItsDigest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		digest := f.write(data)
		if !bytes.Equal(digest, state.BlobDigest(data)) {
			t.Errorf("digest is %x, want that of the content", digest)
		}
		records := f.records()
		first, second := records[state.ChunkKey(digest, 0)], records[state.ChunkKey(digest, 1)]
		if len(records) != 3 || len(first.GetData()) != state.ChunkSize || string(second.GetData()) != "rest" || records[state.BlobKey(digest)].GetSize() != uint64(len(data)) {
			t.Errorf("there are %d records with chunks of %d and %d bytes", len(records), len(first.GetData()), len(second.GetData()))
		}
		if got, err := f.Read(t.Context(), digest); err != nil || !bytes.Equal(got, data) {
			t.Errorf("read %d bytes, %v; want what was written", len(got), err)
		}
	})
}

func TestEqualDataIsStoredOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		f.write(data)
		f.write(data)
		if n := len(f.records()); n != 3 {
			t.Errorf("there are %d records of the same data, want 3", n)
		}
		f.write([]byte("other"))
		if n := len(f.records()); n != 5 {
			t.Errorf("there are %d records with other data, want 5", n)
		}
	})
}

func TestMissingPartsOfABlobAreNoticedAndWrittenAgain(t *testing.T) {
	t.Parallel()
	digest := state.BlobDigest(data)
	for name, key := range map[string]string{
		"the blob itself":  state.BlobKey(digest),
		"the first chunk":  state.ChunkKey(digest, 0),
		"the second chunk": state.ChunkKey(digest, 1),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := start(t)
				f.write(data)
				f.remove(key)
				if err := f.keep(digest, uint64(len(data))); !errors.Is(err, state.ErrNoBlob) {
					t.Errorf("keep: %v, want %v", err, state.ErrNoBlob)
				}
				if _, err := f.Read(t.Context(), digest); !errors.Is(err, state.ErrNoBlob) {
					t.Errorf("read: %v, want %v", err, state.ErrNoBlob)
				}
				f.write(data)
				if err := f.keep(digest, uint64(len(data))); err != nil {
					t.Errorf("keep after another write: %v", err)
				}
				if got, err := f.Read(t.Context(), digest); err != nil || !bytes.Equal(got, data) {
					t.Errorf("read after another write: %d bytes, %v", len(got), err)
				}
			})
		})
	}
}

func TestDamagedDataIsNotReturnedAndRepairedByAnotherWrite(t *testing.T) {
	t.Parallel()
	digest := state.BlobDigest(data)
	for name, damage := range map[string]struct {
		key    string
		record *recordv1.Blob
	}{
		"the size":        {state.BlobKey(digest), &recordv1.Blob{Size: 1, UsedAt: 1 << 62}},
		"the first chunk": {state.ChunkKey(digest, 0), &recordv1.Blob{Data: bytes.Repeat([]byte("b"), state.ChunkSize)}},
		"the last chunk":  {state.ChunkKey(digest, 1), &recordv1.Blob{Data: []byte("res")}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := start(t)
				f.write(data)
				err := f.Update(t.Context(), func(tx *store.Tx) error {
					f.Tables.Blobs.Put(tx, damage.key, damage.record)
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				if got, err := f.Read(t.Context(), digest); !errors.Is(err, state.ErrBlobDamaged) {
					t.Errorf("read: %d bytes, %v; want %v", len(got), err, state.ErrBlobDamaged)
				}
				f.write(data)
				if got, err := f.Read(t.Context(), digest); err != nil || !bytes.Equal(got, data) {
					t.Errorf("read after another write: %d bytes, %v", len(got), err)
				}
			})
		})
	}
}

func TestUnknownDigestHasNoData(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		f.write(data)
		other := state.BlobDigest([]byte("other"))
		if _, err := f.Read(t.Context(), other); !errors.Is(err, state.ErrNoBlob) {
			t.Errorf("read: %v, want %v", err, state.ErrNoBlob)
		}
		if err := f.keep(other, 5); !errors.Is(err, state.ErrNoBlob) {
			t.Errorf("keep: %v, want %v", err, state.ErrNoBlob)
		}
	})
}

func TestDataOverTheBoundIsRefusedUnlessItIsThereAlready(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := startWith(t, 10)
		f.write([]byte("12345678"))
		if _, err := f.Write(t.Context(), []byte("123")); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "--max-config-bytes") {
			t.Errorf("write of too much: %v, want ResourceExhausted that names the flag", err)
		}
		f.write([]byte("12345678"))
		f.write([]byte("12"))
		if n := len(f.records()); n != 4 {
			t.Errorf("there are %d records, want two blobs with a chunk each", n)
		}
	})
}

// The sweep removes blobs by the time of their last use.
func TestUseIsRecordedAgainWhenItIsOlderThanTwentySeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		digest := f.write(data)
		began := time.Now()
		used := func() time.Duration {
			for key, record := range f.records() {
				if !strings.Contains(key, "/") {
					return time.UnixMilli(record.UsedAt).Sub(began)
				}
			}
			return -1
		}
		for _, step := range []struct{ wait, want time.Duration }{{19 * time.Second, 0}, {time.Second, 20 * time.Second}} {
			time.Sleep(step.wait)
			if err := f.keep(digest, uint64(len(data))); err != nil {
				t.Fatal(err)
			}
			if got := used(); got != step.want {
				t.Errorf("%v after the write, the last use is at %v, want %v", time.Since(began), got, step.want)
			}
		}
	})
}
