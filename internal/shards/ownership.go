package shards

import (
	"context"
	"fmt"
	"strings"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/kv"
)

// Ownership lists the replicas of a subsystem and the shards that they hold.
type Ownership struct {
	// Members are sorted by instance.
	Members []Member
	// Leases has an entry for each shard that has an owner.
	Leases map[int]Lease
}

// ReadOwnership reads the current ownership of all subsystems from the store.
// Subsystems without members are left out.
func ReadOwnership(ctx context.Context, store kv.KV, prefix string, log *zap.Logger) (map[string]Ownership, error) {
	members, err := readLists[Member](ctx, store, prefix+"/members/", log)
	if err != nil {
		return nil, fmt.Errorf("read members: %w", err)
	}
	locks, err := readLists[Lease](ctx, store, prefix+"/locks/", log)
	if err != nil {
		return nil, fmt.Errorf("read locks: %w", err)
	}
	all := map[string]Ownership{}
	for subsystem, byName := range members {
		all[subsystem] = Ownership{Members: inOrder(byName), Leases: map[int]Lease{}}
	}
	for subsystem, byName := range locks {
		c := all[subsystem]
		c.Leases = byShard(byName)
		all[subsystem] = c
	}
	return all, nil
}

// readLists reads the records under a prefix, by subsystem and name.
func readLists[T Member | Lease](ctx context.Context, store kv.KV, prefix string, log *zap.Logger) (map[string]map[string]T, error) {
	pairs, _, err := store.List(ctx, prefix, kv.ListOptions{})
	if err != nil {
		return nil, err
	}
	found := map[string]map[string]T{}
	for key, v := range decode[T](pairs, prefix, log) {
		subsystem, name, ok := strings.Cut(key, "/")
		if !ok {
			continue
		}
		if found[subsystem] == nil {
			found[subsystem] = map[string]T{}
		}
		found[subsystem][name] = v
	}
	return found, nil
}
