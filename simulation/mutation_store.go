package simulation

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/kv"
)

// brokenStore is a store with some calls replaced.
type brokenStore struct {
	kv.KV
	txn        func(ctx context.Context, ops []kv.Op) ([]kv.Pair, error)
	list       func(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error)
	newSession func(ctx context.Context, cfg kv.SessionConfig) (kv.Session, error)
}

func (b *brokenStore) Txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	if b.txn == nil {
		return b.KV.Txn(ctx, ops)
	}
	return b.txn(ctx, ops)
}

func (b *brokenStore) List(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	if b.list == nil {
		return b.KV.List(ctx, prefix, opt)
	}
	return b.list(ctx, prefix, opt)
}

func (b *brokenStore) NewSession(ctx context.Context, cfg kv.SessionConfig) (kv.Session, error) {
	if b.newSession == nil {
		return b.KV.NewSession(ctx, cfg)
	}
	return b.newSession(ctx, cfg)
}

// rewritten is a store whose transactions are changed before they are applied.
func rewritten(inner kv.KV, change func([]kv.Op) []kv.Op) kv.KV {
	return &brokenStore{KV: inner, txn: func(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
		return inner.Txn(ctx, change(ops))
	}}
}

// blindCommits overwrites whatever is there: no commit compares before it sets.
func blindCommits() Mutation {
	return Mutation{Name: "blind commits", KV: func(_ string, space kv.KV) kv.KV {
		return rewritten(space, func(ops []kv.Op) (blind []kv.Op) {
			for _, op := range ops {
				switch op.Verb {
				case kv.CheckIndex:
					continue
				case kv.CAS:
					op.Verb = kv.Set
				case kv.DeleteCAS:
					op.Verb = kv.Delete
				}
				blind = append(blind, op)
			}
			return blind
		})
	}}
}

func writes(op kv.Op) bool { return op.Verb != kv.Get && op.Verb != kv.CheckIndex }

// pretended is what a store would answer, had it applied writes.
func pretended(ctx context.Context, space kv.KV, ops []kv.Op) ([]kv.Pair, error) {
	_, index, err := space.List(ctx, prefix, kv.ListOptions{})
	if err != nil {
		return nil, err
	}
	var pairs []kv.Pair
	for _, op := range ops {
		if op.Verb == kv.Set || op.Verb == kv.CAS {
			pairs = append(pairs, kv.Pair{Key: op.Key, Index: index})
		}
	}
	return pairs, nil
}

// lostCommits says of a commit of apid now and then that it was made, and does not
// make it.
func lostCommits() Mutation {
	now := every(5)
	return Mutation{Name: "lost commits", KV: func(daemon string, space kv.KV) kv.KV {
		if daemon != "apid" {
			return space
		}
		return &brokenStore{KV: space, txn: func(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
			if slices.ContainsFunc(ops, writes) && !slices.ContainsFunc(ops, func(op kv.Op) bool { return op.Verb == kv.Get }) && now() {
				return pretended(ctx, space, ops)
			}
			return space.Txn(ctx, ops)
		}}
	}}
}

// tableOf is the table that a key lies in.
func tableOf(key string) string {
	table, _, _ := strings.Cut(strings.TrimPrefix(key, prefix+"/"), "/")
	return table
}

// tornCommits makes only a part of a commit now and then: what belongs to its last
// table is lost.
func tornCommits() Mutation {
	now := every(5)
	return Mutation{Name: "torn commits", KV: func(_ string, space kv.KV) kv.KV {
		return &brokenStore{KV: space, txn: func(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
			lost := ""
			for _, op := range ops {
				if writes(op) {
					lost = tableOf(op.Key)
				}
			}
			torn := slices.DeleteFunc(slices.Clone(ops), func(op kv.Op) bool { return writes(op) && tableOf(op.Key) == lost })
			if !slices.ContainsFunc(torn, writes) || !now() {
				return space.Txn(ctx, ops)
			}
			made, err := space.Txn(ctx, torn)
			if err != nil {
				return nil, err
			}
			all, err := pretended(ctx, space, ops)
			for i := range all {
				if at := slices.IndexFunc(made, func(p kv.Pair) bool { return p.Key == all[i].Key }); at >= 0 {
					all[i] = made[at]
				}
			}
			return all, err
		}}
	}}
}

// staleReads shows now and then what heads were before, and says that it is what
// they are.
func staleReads() Mutation {
	now := every(10)
	return Mutation{Name: "stale reads told as fresh", KV: func(_ string, space kv.KV) kv.KV {
		var mu sync.Mutex
		former, present := map[string][]byte{}, map[string][]byte{}
		return &brokenStore{KV: space, list: func(ctx context.Context, from string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
			pairs, index, err := space.List(ctx, from, opt)
			if err != nil || !strings.HasSuffix(from, "/h/") {
				return pairs, index, err
			}
			mu.Lock()
			defer mu.Unlock()
			for i, p := range pairs {
				if !bytes.Equal(present[p.Key], p.Value) {
					former[p.Key], present[p.Key] = present[p.Key], p.Value
					if former[p.Key] != nil && now() {
						pairs[i].Value = former[p.Key]
					}
				}
			}
			return pairs, index, nil
		}}
	}}
}

// lostWakeups makes a watch miss each third change until the next one.
func lostWakeups() Mutation {
	now := every(3)
	return Mutation{Name: "lost wake-ups", KV: func(_ string, space kv.KV) kv.KV {
		return &brokenStore{KV: space, list: func(ctx context.Context, from string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
			pairs, index, err := space.List(ctx, from, opt)
			if err == nil && opt.After > 0 && strings.HasSuffix(from, "/h/") && now() {
				opt.After = index
				return space.List(ctx, from, opt)
			}
			return pairs, index, err
		}}
	}}
}

// sharedLocks makes each replica believe that it is the only one, and that it holds
// all locks.
func sharedLocks() Mutation {
	return Mutation{Name: "locks held by all", KV: alone}
}

// isolationLag is how late an isolated replica sees the writes of others: late enough to
// make the same changes itself.
const isolationLag = 100 * time.Millisecond

// alone returns the store of a replica that sees no other replica.
func alone(daemon string, space kv.KV) kv.KV {
	a := &isolatedKV{members: "/members/" + daemon + "/", locks: "/locks/" + daemon + "/"}
	return &brokenStore{KV: space,
		newSession: func(ctx context.Context, cfg kv.SessionConfig) (kv.Session, error) {
			s, err := space.NewSession(ctx, cfg)
			if err != nil {
				return nil, err
			}
			a.mu.Lock()
			defer a.mu.Unlock()
			a.id = s.ID()
			return &isolatedSession{s}, nil
		},
		list: func(ctx context.Context, from string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
			pairs, index, err := space.List(ctx, from, opt)
			if err == nil && opt.After > 0 {
				_ = backoff.Sleep(ctx, isolationLag)
			}
			return a.see(from, pairs), index, err
		},
	}
}

// isolatedKV hides the members and locks of other replicas.
type isolatedKV struct {
	members, locks string

	mu sync.Mutex
	id string
}

func (a *isolatedKV) see(from string, pairs []kv.Pair) []kv.Pair {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case strings.HasSuffix(from, a.members):
		return slices.DeleteFunc(pairs, func(p kv.Pair) bool { return p.Session != a.id })
	case strings.HasSuffix(from, a.locks):
		for i := range pairs {
			pairs[i].Session = a.id
		}
	}
	return pairs
}

// isolatedSession acquires each lock, even if another session holds it.
type isolatedSession struct{ kv.Session }

func (s *isolatedSession) Acquire(ctx context.Context, key string, value []byte) (bool, error) {
	_, err := s.Session.Acquire(ctx, key, value)
	return err == nil, err
}
