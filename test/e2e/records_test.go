package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/consul"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// tablesOfNodes hold what stays when all services are gone: nodes are there
// until an operator removes them.
var tablesOfNodes = []string{"nodes", "nodestates", "clusters"}

// marks is where writers note that a table has changed. A mark is a number, and stays.
const marks = "changes"

// presence is what daemons have in the store while they run.
var presence = []string{"members", "locks"}

// archive is the cluster's store, opened by the test beside the daemons.
type archive struct {
	space  kv.KV
	tables *state.Tables
	store  *store.Store
}

// openArchive opens the store in Consul until the test ends.
func (s *site) openArchive(t *testing.T) *archive {
	t.Helper()
	a := &archive{tables: state.NewTables()}
	c, err := consul.New(consul.Config{Address: s.Consul.Address})
	if err != nil {
		t.Fatal(err)
	}
	a.space = c
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	ts := a.tables
	a.store, err = store.New(store.Options{KV: a.space, Prefix: daemon.Prefix}, ts.Services, ts.Specs, ts.Names, ts.Nodes, ts.Clusters, ts.Configs, ts.Secrets, ts.Sealing, ts.SealedBlobs, ts.Stacks, ts.StackBlobs, ts.Blobs, ts.Networks, ts.NetworkStates, ts.Blocks,
		ts.Authorities, ts.Tokens, ts.Tasks, ts.Rollouts, ts.Endpoints, ts.Assignments, ts.Placements, ts.SchedulerFences, ts.AllocatorFences, ts.NodeStates, ts.Statuses)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ran := make(chan error, 1)
	go func() { ran <- a.store.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	ready, done := context.WithTimeout(ctx, runTimeout)
	defer done()
	if err := a.store.Ready(ready); err != nil {
		t.Fatal(err)
	}
	return a
}

// records returns the keys of all records in the store, by table, without the
// fences, which are of the shards and not of any service; and the keys that are
// no table's, by the first part of their path.
func (a *archive) records(ctx context.Context) (map[string][]string, error) {
	ts, sn := a.tables, a.store.Snapshot()
	found := map[string][]string{
		"services": keys(ts.Services, sn), "specs": keys(ts.Specs, sn), "names": keys(ts.Names, sn), "nodes": keys(ts.Nodes, sn),
		"clusters": keys(ts.Clusters, sn), "configs": keys(ts.Configs, sn), "secrets": keys(ts.Secrets, sn), "sealing": keys(ts.Sealing, sn), "sealedblobs": keys(ts.SealedBlobs, sn), "stacks": keys(ts.Stacks, sn), "stackblobs": keys(ts.StackBlobs, sn), "networks": keys(ts.Networks, sn), "networkstates": keys(ts.NetworkStates, sn), "blocks": keys(ts.Blocks, sn), "blobs": keys(ts.Blobs, sn), "authorities": keys(ts.Authorities, sn), "tokens": keys(ts.Tokens, sn), "tasks": keys(ts.Tasks, sn), "rollouts": keys(ts.Rollouts, sn), "endpoints": keys(ts.Endpoints, sn),
		"assignments": keys(ts.Assignments, sn), "placements": keys(ts.Placements, sn), "scheduler_fences": keys(ts.SchedulerFences, sn), "allocator_fences": keys(ts.AllocatorFences, sn), "nodestates": keys(ts.NodeStates, sn),
		"statuses": keys(ts.Statuses, sn),
	}
	// Schedulers of versions before v0.1.0 read them here.
	found["placements"] = slices.DeleteFunc(found["placements"], func(key string) bool { return strings.HasPrefix(key, "fence") })
	pairs, _, err := a.space.List(ctx, daemon.Prefix+"/", kv.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, p := range pairs {
		first, rest, _ := strings.Cut(strings.TrimPrefix(p.Key, daemon.Prefix+"/"), "/")
		if first == marks {
			continue
		}
		if _, table := found[first]; !table || slices.Contains(presence, first) {
			found[first] = append(found[first], rest)
		}
	}
	delete(found, "scheduler_fences")
	delete(found, "allocator_fences")
	maps.DeleteFunc(found, func(_ string, in []string) bool { return len(in) == 0 })
	return found, nil
}

func keys[T any](t *store.Table[T], r store.Reader) []string {
	var found []string
	for e := range t.Scan(r, "") {
		found = append(found, e.Key)
	}
	return found
}

// only returns an error unless the store holds records of the given tables only.
func only(found map[string][]string, allowed ...string) error {
	var errs []error
	for table, in := range found {
		if !slices.Contains(allowed, table) {
			errs = append(errs, fmt.Errorf("%s holds %q", table, in))
		}
	}
	return errors.Join(errs...)
}
