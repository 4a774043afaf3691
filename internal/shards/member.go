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

// Member is one replica of a daemon, as it introduces itself to the others.
type Member struct {
	// Instance is unique among all replicas, living and dead.
	Instance string `json:"instance"`
	// Daemon is the daemon's name: "schedulerd".
	Daemon string `json:"daemon"`
	// Address is where its gRPC server is reached, "host:port".
	Address string `json:"address"`
	Version string `json:"version"`
	// Started is when the process started.
	Started time.Time `json:"started"`
}

// Holding is a shard's lock: who holds it, and since when by the holder's clock.
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

// decode reads the values of member or lock records under a prefix. One that
// cannot be read is left out: it is another version's, and only advice.
func decode[T Member | Lease](pairs []kv.Pair, prefix string, log *zap.Logger) map[string]T {
	found := make(map[string]T, len(pairs))
	for _, p := range pairs {
		if p.Session == "" {
			continue // its session has ended; the record is about to go
		}
		var v T
		if err := json.Unmarshal(p.Value, &v); err != nil {
			log.Warn("member record is unreadable", zap.String("key", p.Key), zap.Error(err))
			continue
		}
		found[p.Key[len(prefix):]] = v
	}
	return found
}

// byShard takes those locks whose names are shards.
func byShard(locks map[string]Lease) map[int]Lease {
	held := make(map[int]Lease, len(locks))
	for name, h := range locks {
		if shard, err := strconv.Atoi(name); err == nil {
			held[shard] = h
		}
	}
	return held
}

// inOrder returns members in order of instance.
func inOrder(byName map[string]Member) []Member {
	members := make([]Member, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		members = append(members, byName[name])
	}
	return members
}

// longestWait is how long a list waits for a change before it begins from nothing.
// Where the store was restored from a snapshot between two lists, the second waits
// for an index that is long in coming.
const maxListWait = time.Minute

// follow calls see with all pairs under a prefix, at first and whenever they
// have changed, until ctx ends. While the store is away it keeps trying.
//
// Any server may answer: one that waits for its leader would wait in vain for one
// that hangs. But what is older than what was seen before is asked of the
// leader.
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
			// A server that lags; or the store was restored from a snapshot.
			pairs, index, err = store.List(ctx, prefix, kv.ListOptions{})
		}
		if err != nil {
			if ctx.Err() == nil {
				log.Debug("repeating list", zap.String("prefix", prefix), zap.Error(err))
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
