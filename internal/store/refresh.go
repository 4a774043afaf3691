package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/kv"
)

const (
	// maxRounds is how often heads and pages are read for one refresh. After that, the
	// whole table is listed, which always succeeds.
	maxRounds = 3
	// maxMissing is the largest number of pages that are read one by one. Listing the
	// table is cheaper for more.
	maxMissing = 1024
	// backwardsRetry is the pause before an old state is read again. A deposed leader of
	// the kv may return an old state until its lease ends.
	backwardsRetry = time.Second
)

// errBackwards says that the kv holds an older state than before.
var errBackwards = errors.New("kv went backwards")

// refresh brings the table's snapshot up to the current state of the kv, or at least up
// to the heads of hint, which must have been read in one transaction.
//
// All heads are read in one transaction. Pages can be read at any time, because number,
// sequence number and checksum identify their content.
func (f *follower) refresh(ctx context.Context, hint *tableHeads) error {
	select {
	case f.readLock <- struct{}{}:
		defer func() { <-f.readLock }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return f.refreshLocked(ctx, hint)
}

// refreshLocked is refresh; the caller holds readLock.
func (f *follower) refreshLocked(ctx context.Context, hint *tableHeads) error {
	err := f.refreshOnce(ctx, hint)
	if errors.Is(err, errBackwards) {
		_ = backoff.New(backwardsRetry, backwardsRetry).Wait(ctx)
		err = f.refreshOnce(ctx, nil)
	}
	if errors.Is(err, errBackwards) {
		if err = f.s.restore(ctx); err == nil {
			err = f.refreshOnce(ctx, nil)
		}
	}
	if err != nil {
		return fmt.Errorf("refresh table %s: %w", f.def.Name(), err)
	}
	return nil
}

// refreshOnce reads the table once. It returns errBackwards if the kv was restored.
func (f *follower) refreshOnce(ctx context.Context, hint *tableHeads) error {
	before := f.state()
	found := map[string]kv.Pair{}
	var missing []string
	if hint != nil {
		missing = f.missing(hint, found)
		if _, err := f.read(ctx, missing, found, false); err != nil {
			return err
		}
		if missing = f.missing(hint, found); len(missing) == 0 {
			// The heads may come from a server that lags.
			return f.install(hint, emptyTable, found)
		}
	}
	for range maxRounds {
		if len(missing) > maxMissing {
			break
		}
		pairs, err := f.read(ctx, missing, found, true)
		if err != nil {
			return err
		}
		heads, err := f.parseHeads(pairs)
		if err != nil {
			return err
		}
		if fl := f.inFlight.Load(); fl != nil && heads.wroteLast(fl.writer) {
			// The result of this store's own commit need not be read.
			select {
			case <-fl.done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if missing = f.missing(heads, found); len(missing) == 0 {
			return f.install(heads, before, found)
		}
	}
	return f.list(ctx)
}

// read reads the pages with these keys into found, in as few transactions as possible.
// If heads is set, the last transaction also reads all heads.
func (f *follower) read(ctx context.Context, keys []string, found map[string]kv.Pair, heads bool) ([]kv.Pair, error) {
	limit := f.s.kv.Limits().Ops
	f.s.metrics.pagesRead.WithLabelValues(f.def.Name()).Add(float64(len(keys)))
	var pairs []kv.Pair
	for len(keys) > 0 || heads {
		n := min(len(keys), limit)
		ops := make([]kv.Op, 0, n+Shards)
		for _, k := range keys[:n] {
			ops = append(ops, kv.Op{Verb: kv.Get, Key: k})
		}
		keys = keys[n:]
		if heads && len(keys) == 0 && n+Shards <= limit {
			for i := range Shards {
				ops = append(ops, kv.Op{Verb: kv.Get, Key: headKey(f.s.prefix, f.def, i)})
			}
			heads = false
		}
		var err error
		if pairs, err = f.s.txn(ctx, ops); err != nil {
			return nil, fmt.Errorf("read heads and pages: %w", err)
		}
		for _, p := range pairs {
			found[p.Key] = p
		}
	}
	return pairs, nil
}

// missing returns the keys of the pages that the heads refer to and that are neither in
// the snapshot nor in found.
func (f *follower) missing(heads *tableHeads, found map[string]kv.Pair) []string {
	var keys []string
	for i, sh := range f.state().shards {
		if heads[i].index == sh.index {
			continue
		}
		for _, ref := range heads[i].pages {
			if sh.page(ref) != nil {
				continue
			}
			key := pageKey(f.s.prefix, f.def, i, ref.num)
			if p, ok := found[key]; ok && checksum(p.Value) == ref.sum {
				continue
			}
			keys = append(keys, key)
		}
	}
	return keys
}

// list reads and installs the whole table.
func (f *follower) list(ctx context.Context) error {
	before := f.state()
	pairs, _, err := f.s.kv.List(ctx, tablePrefix(f.s.prefix, f.def), kv.ListOptions{})
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	return f.installList(pairs, before)
}

// load reads the table for the first time. It returns the index to watch from.
func (f *follower) load(ctx context.Context) (uint64, error) {
	start := time.Now()
	pairs, index, err := f.s.kv.List(ctx, tablePrefix(f.s.prefix, f.def), kv.ListOptions{})
	if err != nil {
		return 0, fmt.Errorf("load: %w", err)
	}
	heads, err := f.parseHeads(pairs)
	if err != nil {
		return 0, fmt.Errorf("load: %w", err)
	}
	f.createHeads(ctx, heads)
	if err := f.installList(pairs, emptyTable); err != nil {
		return 0, fmt.Errorf("load: %w", err)
	}
	f.s.log.Debug("table loaded", zap.String("table", f.def.Name()),
		zap.Int("keys", len(pairs)), zap.Duration("took", time.Since(start)))
	return index, nil
}

// createHeads writes the heads of a table that do not exist, for two reasons. Consul
// wakes a list of an empty prefix after every write nearby, so every commit to any table
// would wake the readers of an empty table. And with Consul's ACLs, a token that can read
// a key may check its index but not its absence, so a transaction that reads an empty
// shard would need permission to write the shard.
//
// Errors are ignored: another process may be first, or this process may be read-only.
func (f *follower) createHeads(ctx context.Context, heads *tableHeads) {
	var ops []kv.Op
	for i, h := range heads {
		if h.index == 0 {
			ops = append(ops, kv.Op{Verb: kv.CAS, Key: headKey(f.s.prefix, f.def, i), Value: (&head{}).encode()})
		}
	}
	if len(ops) == 0 {
		return
	}
	if f.def.rarelyWritten() {
		ops = append(ops, kv.Op{Verb: kv.CAS, Key: markKey(f.s.prefix, f.def), Value: mark(f.s.prefix, f.def, writer{id: f.s.id}).Value})
	}
	_, err := f.s.txn(ctx, ops)
	if errors.Is(err, kv.ErrConflict) {
		// One of them exists by now. Create the others one by one.
		for _, op := range ops {
			if _, err = f.s.txn(ctx, []kv.Op{op}); err != nil && !errors.Is(err, kv.ErrConflict) {
				break
			}
		}
	}
	if err != nil {
		f.s.log.Debug("failed to create heads", zap.String("table", f.def.Name()), zap.Error(err))
	}
}

func (f *follower) installList(pairs []kv.Pair, before *tableState) error {
	heads, err := f.parseHeads(pairs)
	if err != nil {
		return err
	}
	found := make(map[string]kv.Pair, len(pairs))
	pages := 0
	for _, p := range pairs {
		found[p.Key] = p
		if strings.HasPrefix(p.Key, f.pages) {
			pages++
		}
	}
	f.s.metrics.pagesRead.WithLabelValues(f.def.Name()).Add(float64(pages))
	return f.install(heads, before, found)
}

// install builds shards from heads and pages, and puts them into the snapshot. before is
// the state before the read. It is newer than a head only if the kv was restored.
func (f *follower) install(heads *tableHeads, before *tableState, found map[string]kv.Pair) error {
	for i := range heads {
		if heads[i].index < before.shards[i].index {
			return errBackwards
		}
	}
	now := f.state()
	if now == nil {
		now = emptyTable
	}
	var changed []newShard
	for i, old := range now.shards {
		if heads[i].index <= old.index {
			continue
		}
		next, err := f.shard(i, heads[i].head, heads[i].index, old, found)
		if err != nil {
			return err
		}
		changed = append(changed, newShard{table: f.index, shard: i, state: next})
	}
	f.s.install(f.index, changed)
	return nil
}

// shard builds a shard from its head, its unchanged pages and the pages in found.
func (f *follower) shard(number int, h *head, index uint64, old *shard, found map[string]kv.Pair) (*shard, error) {
	sh := &shard{index: index, seq: h.seq, next: h.next, writers: h.writers, pages: make([]*page, len(h.pages))}
	for i, ref := range h.pages {
		in := bounds{low: ref.low, seq: h.seq}
		if i+1 < len(h.pages) {
			in.high = h.pages[i+1].low
		}
		if p := old.page(ref); p != nil {
			if p.low != ref.low {
				p = &page{pageRef: ref, recs: p.recs, size: p.size}
			}
			sh.pages[i] = p
			continue
		}
		key := pageKey(f.s.prefix, f.def, number, ref.num)
		pair, ok := found[key]
		if !ok || checksum(pair.Value) != ref.sum {
			return nil, fmt.Errorf("key %s: %w: the page does not match its head", key, errCorrupt)
		}
		known := old.seek(ref.low)
		recs, err := decodePage(f.def, pair.Value, in, &known)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", key, err)
		}
		sh.pages[i] = &page{pageRef: ref, recs: recs, size: len(pair.Value)}
	}
	return sh, nil
}
