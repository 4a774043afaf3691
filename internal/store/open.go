package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/kv"
)

// DefaultMaxPage is the default of Options.MaxPage, in bytes. An update of one
// record writes one page, so small pages serve it; a transaction holds 128
// operations and some 380 KB, so pages of 3 KB fill it evenly, and larger ones
// make fewer and longer round trips with smaller heads. On Consul and two cores,
// 10,000 updates of 10,000 records took 190 to 210 ms with pages of 4 and 8 KiB,
// 150 with 12, 210 to 270 with 16 and 32 (BenchmarkCommitAll).
const DefaultMaxPage = 12 << 10

// minMaxPage is the least that makes sense, for tests that want many pages.
const minMaxPage = 64

// Options say how to open a store.
type Options struct {
	// KV is where the tables are kept.
	KV kv.KV
	// Prefix is where in the KV: "muster" is the default.
	Prefix string
	// Logger is optional.
	Logger *zap.Logger
	// Metrics is optional. Stores that share a registry must be told apart by
	// prometheus.WrapRegistererWith.
	Metrics prometheus.Registerer
	// MaxPage is the size in bytes above which a page is split. A greater one
	// makes each small update dearer, a smaller one large updates and heads.
	MaxPage int
}

// Store gives access to a number of tables. Any number of stores may be open on
// one KV, in one process or in many.
type Store struct {
	kv      kv.KV
	prefix  string
	log     *zap.Logger
	maxPage int
	id      uint64 // tells this store's commits from others'
	tables  []*follower
	queue   *queue
	health  *health
	metrics *metrics
	marks   *markWatch // nil unless tables share it
	started atomic.Bool

	current atomic.Pointer[Snapshot]
	// mu is held to replace current and changed, which is closed when it is.
	mu      sync.Mutex
	changed chan struct{}
}

// New returns a store of these tables. It starts nothing: see Run.
func New(opt Options, tables ...TableDef) (*Store, error) {
	if opt.KV == nil {
		return nil, errors.New("open store: no kv")
	}
	if opt.Prefix == "" {
		opt.Prefix = "muster"
	}
	if opt.MaxPage == 0 {
		opt.MaxPage = DefaultMaxPage
	}
	if opt.Logger == nil {
		opt.Logger = zap.NewNop()
	}
	if err := checkName("prefix", opt.Prefix); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if least := minMaxPage; opt.MaxPage < least {
		return nil, fmt.Errorf("open store: page size of %d bytes: less than %d", opt.MaxPage, least)
	}
	s := &Store{
		kv: opt.KV, prefix: opt.Prefix, log: opt.Logger, maxPage: opt.MaxPage,
		id: rand.Uint64(), queue: newQueue(), health: newHealth(len(tables), time.Now()),
		changed: make(chan struct{}),
	}
	seen := map[string]bool{}
	for i, t := range tables {
		if err := checkName("table", t.Name()); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
		if seen[t.Name()] {
			return nil, fmt.Errorf("open store: table %q is named twice", t.Name())
		}
		seen[t.Name()] = true
		s.tables = append(s.tables, newFollower(s, t, i))
	}
	s.shareWatch()
	s.current.Store(&Snapshot{defs: tables, tables: make([]*tableState, len(tables))})
	s.metrics = newMetrics(s.Status)
	if opt.Metrics != nil {
		if err := s.metrics.register(opt.Metrics); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	return s, nil
}

// shareWatch gives rarely written tables one watch, if there are several.
func (s *Store) shareWatch() {
	var rare []*follower
	for _, f := range s.tables {
		if f.def.rarelyWritten() {
			rare = append(rare, f)
		}
	}
	if len(rare) < 2 {
		return
	}
	s.marks = newMarkWatch(s)
	for _, f := range rare {
		f.marks = s.marks
	}
}

// Run loads and follows the tables and commits updates until ctx ends. It may
// be called once. Updates that have no result by then end with ErrClosed.
func (s *Store) Run(ctx context.Context) error {
	if !s.started.CompareAndSwap(false, true) {
		return errors.New("run store: it was run before")
	}
	var wg sync.WaitGroup
	for _, f := range s.tables {
		wg.Go(func() { f.run(ctx) })
	}
	wg.Go(func() { newCommitter(s).run(ctx) })
	wg.Go(func() { s.probe(ctx) })
	if s.marks != nil {
		wg.Go(func() { s.marks.run(ctx) })
	}
	wg.Wait()
	return nil
}

// Ready blocks until every table has been loaded. If ctx ends before, its error
// says what kept it.
func (s *Store) Ready(ctx context.Context) error {
	for {
		sn, changed := s.newest()
		if sn.loaded() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			err := context.Cause(ctx)
			if why := s.health.err(); why != nil {
				err = fmt.Errorf("%w: %w", err, why)
			}
			return fmt.Errorf("load store: %w", err)
		}
	}
}

// Snapshot returns the newest state that is known. It never blocks. Before
// Ready has returned, tables are empty.
func (s *Store) Snapshot() *Snapshot { return s.current.Load() }

// newest returns the snapshot and a channel that is closed with the next one.
func (s *Store) newest() (*Snapshot, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current.Load(), s.changed
}

// Wait blocks until one of the tables (or any, if none is given) is different
// from what it is in after, and returns the newest snapshot. If after is nil, it
// blocks until the tables have been loaded.
func (s *Store) Wait(ctx context.Context, after *Snapshot, tables ...TableDef) (*Snapshot, error) {
	for {
		sn, changed := s.newest()
		if sn.differs(after, tables) {
			return sn, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for a change: %w", context.Cause(ctx))
		}
	}
}

// Staleness returns how long ago the last contact with the kv was, or 0 while
// there is contact.
func (s *Store) Staleness() time.Duration { return s.health.staleness() }

// Update runs fn on the newest state and commits what it writes, whole or not at
// all, if nothing that it has read has changed meanwhile; else it runs fn again.
// So fn may run several times, always in one goroutine, and must have no other
// effect than to set variables, each time again. It must not block.
//
// If fn returns an error, nothing is written, and Update returns that error once
// it has made sure that what fn has read is still so. If fn writes nothing and
// returns no error, what it has read may be as stale as a Snapshot. An update
// that is too large for one transaction ends with kv.ErrTooLarge.
//
// After nil, the update is committed and shows in Snapshot. When ctx ends before
// that, the error wraps its cause; kv.ErrUnavailable if the kv was away; and
// ErrOutcomeUnknown if the update may have been applied nevertheless. With any
// other error, nothing was written.
func (s *Store) Update(ctx context.Context, fn func(tx *Tx) error) error {
	return s.UpdateAll(ctx, []func(tx *Tx) error{fn})[0]
}

// UpdateAll is a number of Updates at once, each for itself, in any order, in as
// few transactions as they fit into. Updates of neighbouring records cost least
// if they are neighbours in fns. It returns an error (or nil) for each.
func (s *Store) UpdateAll(ctx context.Context, fns []func(tx *Tx) error) []error {
	if len(fns) == 0 {
		return nil
	}
	g := newGroup(fns)
	if ctx.Err() == nil {
		if err := s.queue.add(g); err != nil {
			errs := make([]error, len(fns))
			for i := range errs {
				errs[i] = fmt.Errorf("update: %w", err)
			}
			return errs
		}
	}
	began := time.Now()
	s.metrics.pending.Add(float64(len(fns)))
	errs := g.wait(ctx, s.health.outage)
	s.metrics.pending.Sub(float64(len(fns)))
	s.metrics.updateSeconds.Observe(time.Since(began).Seconds())
	return errs
}
