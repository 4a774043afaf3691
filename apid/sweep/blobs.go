package sweep

import (
	"context"
	"strings"
	"time"

	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// sweepBlobs removes blobs that no object has referred to for the grace time. The
// transaction that removes a blob checks that this is still so: an object that is
// written meanwhile has noted that it uses the blob.
func (s *Sweeper) sweepBlobs(ctx context.Context, waiting unused, now time.Time) {
	snapshot := s.Snapshot()
	used := s.blobUses(snapshot)
	var candidates []record
	for e := range s.Tables.Blobs.Scan(snapshot, "") {
		if !strings.Contains(e.Key, "/") && !used[e.Key] && now.UnixMilli()-e.Value.UsedAt >= s.opt.SpecGrace.Milliseconds() {
			candidates = append(candidates, record{e.Key, e.Version})
		}
	}
	s.remove(ctx, "data of configs", waiting.due(now, s.opt.SpecGrace, candidates), func(tx *store.Tx, due []record) {
		used := s.blobUses(tx)
		for _, r := range due {
			if e, ok := s.Tables.Blobs.Get(tx, r.key); !ok || e.Version != r.version || used[r.key] {
				continue
			}
			for chunk := range s.Tables.Blobs.Scan(tx, r.key+"/") {
				s.Tables.Blobs.Delete(tx, chunk.Key)
			}
			s.Tables.Blobs.Delete(tx, r.key)
		}
	})
}

// blobUses returns the keys of the blobs that objects refer to.
func (s *Sweeper) blobUses(r store.Reader) map[string]bool {
	used := map[string]bool{}
	for e := range s.Tables.Configs.Scan(r, "") {
		used[state.BlobKey(e.Value.Digest)] = true
	}
	return used
}
