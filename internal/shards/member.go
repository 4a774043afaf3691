package shards

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/kv"
)

// Member describes one replica of a daemon to the other replicas.
type Member struct {
	// Instance is unique among all present and past replicas.
	Instance string `json:"instance"`
	// Daemon is the name of the daemon, such as "schedulerd".
	Daemon string `json:"daemon"`
	// Address is the address of its gRPC server, "host:port".
	Address string `json:"address"`
	Version string `json:"version"`
	// Started is when the process started.
	Started time.Time `json:"started"`
}

// Lease is the record of a shard's lock: its owner, and the owner's time of acquiring it.
type Lease struct {
	Member
	Since time.Time `json:"since"`
}

func membersPrefix(prefix, subsystem string) string { return prefix + "/members/" + subsystem + "/" }
func locksPrefix(prefix, subsystem string) string   { return prefix + "/locks/" + subsystem + "/" }

func lockKey(prefix, subsystem string, shard int) string {
	return locksPrefix(prefix, subsystem) + strconv.Itoa(shard)
}

func encode[T Member | Lease](v T) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode member: %w", err)
	}
	return b, nil
}

// decode decodes the member or lock records under a prefix. It skips records that it
// cannot decode: another version wrote them, and nothing depends on them.
func decode[T Member | Lease](pairs []kv.Pair, prefix string, log *zap.Logger) map[string]T {
	found := make(map[string]T, len(pairs))
	for _, p := range pairs {
		if p.Session == "" {
			continue // its session has ended: the store is about to delete the record
		}
		var v T
		if err := json.Unmarshal(p.Value, &v); err != nil {
			log.Warn("failed to decode member record", zap.String("key", p.Key), zap.Error(err))
			continue
		}
		found[p.Key[len(prefix):]] = v
	}
	return found
}

// byShard returns the locks by shard. It skips locks whose name is not a number.
func byShard(locks map[string]Lease) map[int]Lease {
	held := make(map[int]Lease, len(locks))
	for name, h := range locks {
		if shard, err := strconv.Atoi(name); err == nil {
			held[shard] = h
		}
	}
	return held
}

// inOrder returns members sorted by instance.
func inOrder(byName map[string]Member) []Member {
	members := make([]Member, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		members = append(members, byName[name])
	}
	return members
}

// maxListWait is how long a list waits for a change before it starts without an index.
// If the store was restored from a snapshot between two lists, the second list waits
// for an index that the store reaches much later.
const maxListWait = time.Minute

// watchPrefix calls see with all pairs under a prefix, first at once and then after each
// change, until ctx ends. It retries while the store is unavailable.
//
// Any server may answer, because a server that asks its leader first would block while
// the leader hangs. If an answer is older than the last one, the leader is asked.
func watchPrefix(ctx context.Context, store kv.KV, prefix string, log *zap.Logger, see func([]kv.Pair)) {
	var after, newest uint64
	retry := backoff.New(50*time.Millisecond, 2*time.Second)
	for ctx.Err() == nil {
		waiting, end := context.WithCancel(ctx)
		enough := time.AfterFunc(maxListWait, end)
		pairs, index, err := store.List(waiting, prefix, kv.ListOptions{After: after, Stale: newest > 0})
		waited := waiting.Err() != nil
		enough.Stop()
		end()
		if err != nil && waited && ctx.Err() == nil {
			after = 0
			continue
		}
		if err == nil && index < newest {
			// The server lags, or the store was restored from a snapshot.
			pairs, index, err = store.List(ctx, prefix, kv.ListOptions{})
		}
		if err != nil {
			if ctx.Err() == nil {
				log.Debug("failed to list; retrying", zap.String("prefix", prefix), zap.Error(err))
			}
			after = 0
			_ = retry.Wait(ctx)
			continue
		}
		retry.Reset()
		after, newest = index, index
		see(pairs)
	}
}
