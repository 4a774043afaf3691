package sweep

import (
	"context"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// blobBatch bounds one transaction that removes blobs: each has up to eight chunks.
const blobBatch = 4

// sweepBlobs removes blobs that no object has referred to for the grace time. The
// transaction that removes a blob checks that this is still so: an object that is
// written meanwhile has noted that it uses the blob.
func (s *Sweeper) sweepBlobs(ctx context.Context, waiting map[string]unused, now time.Time) {
	snapshot := s.Snapshot()
	used := s.blobUses(snapshot)
	still, due := map[string]unused{}, map[string]uint64{}
	for e := range s.Tables.Blobs.Scan(snapshot, "") {
		if strings.Contains(e.Key, "/") || used[e.Key] || now.UnixMilli()-e.Value.UsedAt < s.opt.SpecGrace.Milliseconds() {
			continue
		}
		u, known := waiting[e.Key]
		if !known || u.version != e.Version {
			u = unused{version: e.Version, since: now}
		}
		still[e.Key] = u
		if now.Sub(u.since) >= s.opt.SpecGrace && len(due) < blobBatch {
			due[e.Key] = e.Version
		}
	}
	clear(waiting)
	for k, u := range still {
		waiting[k] = u
	}
	if len(due) == 0 {
		return
	}
	ctx, cancel := s.Writing(ctx)
	defer cancel()
	err := s.Update(ctx, func(tx *store.Tx) error {
		used := s.blobUses(tx)
		for key, version := range due {
			e, ok := s.Tables.Blobs.Get(tx, key)
			if !ok || e.Version != version || used[key] {
				continue
			}
			for chunk := range s.Tables.Blobs.Scan(tx, key+"/") {
				s.Tables.Blobs.Delete(tx, chunk.Key)
			}
			s.Tables.Blobs.Delete(tx, key)
		}
		return nil
	})
	if err != nil {
		s.Log.Warn("failed to remove unused data; retrying with the next sweep", zap.Error(err))
		return
	}
	s.Log.Info("removed unused data", zap.Int("blobs", len(due)))
}

// blobUses returns the keys of the blobs that objects refer to.
func (s *Sweeper) blobUses(r store.Reader) map[string]bool {
	used := map[string]bool{}
	for e := range s.Tables.Configs.Scan(r, "") {
		used[state.BlobKey(e.Value.Digest)] = true
	}
	return used
}
