package sweep

import (
	"context"
	"strings"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// blobs are the blobs of one kind of objects, and which of them were unused before.
type blobs struct {
	what    string
	table   *store.Table[*recordv1.Blob]
	waiting unused
	// uses returns the keys of the blobs that objects refer to.
	uses func(r store.Reader) map[string]bool
}

// blobsOf returns the blobs of all kinds.
func blobsOf(t *state.Tables) []blobs {
	return []blobs{
		{"data of configs", t.Blobs, unused{}, func(r store.Reader) map[string]bool { return digests(t.Configs, r) }},
		{"data of secrets", t.SealedBlobs, unused{}, func(r store.Reader) map[string]bool { return digests(t.Secrets, r) }},
		{"contents of stacks", t.StackBlobs, unused{}, func(r store.Reader) map[string]bool { return stackDigests(t, r) }},
	}
}

func digests[R interface{ GetDigest() []byte }](table *store.Table[R], r store.Reader) map[string]bool {
	used := map[string]bool{}
	for e := range table.Scan(r, "") {
		used[state.BlobKey(e.Value.GetDigest())] = true
	}
	return used
}

func stackDigests(t *state.Tables, r store.Reader) map[string]bool {
	used := map[string]bool{}
	for e := range t.Stacks.Scan(r, "") {
		for _, revision := range e.Value.Revisions {
			used[state.BlobKey(revision.Digest)] = true
		}
	}
	return used
}

// sweepBlobs removes blobs that no object has referred to for the grace time. The
// transaction that removes a blob checks that this is still so: an object that is
// written meanwhile has noted that it uses the blob.
func (s *Sweeper) sweepBlobs(ctx context.Context, of blobs, now time.Time) {
	snapshot := s.Snapshot()
	used := of.uses(snapshot)
	var candidates []record
	for e := range of.table.Scan(snapshot, "") {
		if !strings.Contains(e.Key, "/") && !used[e.Key] && now.UnixMilli()-e.Value.UsedAt >= s.opt.SpecGrace.Milliseconds() {
			candidates = append(candidates, record{e.Key, e.Version})
		}
	}
	s.remove(ctx, of.what, of.waiting.due(now, s.opt.SpecGrace, candidates), func(tx *store.Tx, due []record) {
		used := of.uses(tx)
		for _, r := range due {
			if e, ok := of.table.Get(tx, r.key); !ok || e.Version != r.version || used[r.key] {
				continue
			}
			for chunk := range of.table.Scan(tx, r.key+"/") {
				of.table.Delete(tx, chunk.Key)
			}
			of.table.Delete(tx, r.key)
		}
	})
}
