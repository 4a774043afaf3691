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

// DefaultMaxPage is the default of Options.MaxPage, in bytes. An update of one record
// writes one page, so small pages are good for single updates. A transaction holds
// 128 operations and about 380 KB, so pages of 3 KB use both limits evenly. Larger
// pages need fewer but longer round trips, and smaller heads. On Consul and two cores,
// 10,000 updates of 10,000 records took 190 to 210 ms with pages of 4 and 8 KiB,
// 150 with 12, 210 to 270 with 16 and 32 (BenchmarkCommitAll).
const DefaultMaxPage = 12 << 10

// minMaxPage is the smallest page size allowed. Tests use it to get many pages.
const minMaxPage = 64

// Options configure a store.
type Options struct {
	// KV holds the tables.
	KV kv.KV
	// Prefix is the prefix of all keys; the default is "muster".
	Prefix string
	// Logger is optional.
	Logger *zap.Logger
	// Metrics is optional. Stores that share a registry need
	// prometheus.WrapRegistererWith with different labels.
	Metrics prometheus.Registerer
	// MaxPage is the size in bytes above which a page is split. Larger pages make
	// small updates more expensive, smaller pages large updates and heads.
	MaxPage int
}

// Store gives access to a set of tables. Any number of stores, in any number of
// processes, may use the same KV.
type Store struct {
	kv      kv.KV
	prefix  string
	log     *zap.Logger
	maxPage int
	id      uint64 // identifies this store as the writer of its commits
	tables  []*follower
	queue   *queue
	health  *health
	metrics *metrics
	marks   *markWatch // shared by rarely written tables; nil if there are none
	started atomic.Bool

	current atomic.Pointer[Snapshot]
	// mu guards replacing current and changed. changed is closed when current is replaced.
	mu      sync.Mutex
	changed chan struct{}
}

// New returns a store of these tables. Run starts it.
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

// shareWatch makes rarely written tables share one watch, if there are several.
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

// Run loads and watches the tables and commits updates until ctx ends. It may be
// called once. Updates without a result then return ErrClosed.
func (s *Store) Run(ctx context.Context) error {
	if !s.started.CompareAndSwap(false, true) {
		return errors.New("run store: Run was already called")
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

// Ready blocks until every table has been loaded. If ctx ends first, the error says
// what prevented the loading.
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

// Snapshot returns the latest known state. It never blocks. Tables that have not been
// loaded yet are empty.
func (s *Store) Snapshot() *Snapshot { return s.current.Load() }

// newest returns the latest snapshot, and a channel that is closed when there is a
// later one.
func (s *Store) newest() (*Snapshot, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current.Load(), s.changed
}

// Wait blocks until one of the tables (any table, if none is given) differs from its
// state in after, and returns the latest snapshot. If after is nil, it blocks until
// the tables have been loaded.
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

// Staleness returns the time since the last successful call of the kv, or 0 while
// calls succeed.
func (s *Store) Staleness() time.Duration { return s.health.staleness() }

// Update runs fn on the latest state and commits its writes atomically. If the records
// that fn has read have changed in the meantime, fn runs again. fn may therefore run
// several times, one call after another. It must not block, and must have no side
// effect except setting variables, which each call must set again.
//
// If fn returns an error, nothing is written. Update returns the error after it has
// verified that the records that fn has read are current. If fn writes nothing and
// returns nil, its reads are not verified and may be as stale as a Snapshot. An update
// that is too large for one transaction returns kv.ErrTooLarge.
//
// If Update returns nil, the update is committed, and Snapshot shows it. If ctx ends
// first, the error wraps its cause. It also wraps kv.ErrUnavailable if the kv was
// unavailable, and ErrOutcomeUnknown if the update may have been applied. After any
// error without ErrOutcomeUnknown, nothing was written.
func (s *Store) Update(ctx context.Context, fn func(tx *Tx) error) error {
	return s.UpdateAll(ctx, []func(tx *Tx) error{fn})[0]
}

// UpdateAll runs several independent Updates, in any order and in as few transactions
// as possible. It is cheapest if updates of neighbouring records are neighbours in
// fns. It returns one error or nil for each.
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
