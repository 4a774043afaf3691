package shards

import (
	"context"
	"fmt"
	"strings"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/kv"
)

// Census is who takes part in a subsystem's work, and who holds what.
type Ownership struct {
	// Members are in order of instance.
	Members []Member
	// Held are the shards that have a holder.
	Leases map[int]Lease
}

// Take reads the census of all subsystems as the store has it now. Those
// without members are left out.
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

// take reads what is under a prefix, by subsystem and name.
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
