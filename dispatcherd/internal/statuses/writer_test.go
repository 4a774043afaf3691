package statuses_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap/zaptest"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	. "github.com/musterhq/muster/dispatcherd/internal/statuses"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// site is a writer over a store in memory.
type site struct {
	*Writer
	t      *testing.T
	store  *store.Store
	tables *state.Tables
	config Config
	// failing makes updates fail while it is true.
	failing atomic.Bool
	// largest, if not 0, is the number of statuses from which on an update is too
	// large.
	largest int
	// never is the key of a status that is too large.
	never     string
	confirmed atomic.Bool
}

func newSite(t *testing.T) *site {
	t.Helper()
	space, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, tables: state.NewTables()}
	s.confirmed.Store(true)
	log := zaptest.NewLogger(t)
	if s.store, err = store.New(store.Options{KV: space, Prefix: "muster", Logger: log}, s.tables.Assignments, s.tables.Statuses); err != nil {
		t.Fatal(err)
	}
	metrics, err := NewMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	s.config = Config{Store: s, Tables: s.tables, Confirmed: s.confirmed.Load, Metrics: metrics, Logger: log}
	s.Writer = NewWriter(s.config)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{s.store.Run, s.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	if err := s.store.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// Snapshot implements [Store].
func (s *site) Snapshot() *store.Snapshot { return s.store.Snapshot() }

// UpdateAll implements [Store].
func (s *site) UpdateAll(ctx context.Context, updates []func(*store.Tx) error) []error {
	errs := make([]error, len(updates))
	for i, update := range updates {
		if s.failing.Load() {
			errs[i] = kv.ErrUnavailable
			continue
		}
		errs[i] = s.store.Update(ctx, func(tx *store.Tx) error {
			before := s.count(tx)
			if err := update(tx); err != nil {
				return err
			}
			e, _ := s.tables.Statuses.Get(tx, s.never)
			if s.largest > 0 && s.count(tx)-before > s.largest || e.Value.GetState() == musterv1.TaskState_FAILED {
				return kv.ErrTooLarge
			}
			return nil
		})
	}
	return errs
}

func (s *site) count(r store.Reader) int {
	n := 0
	for range s.tables.Statuses.Scan(r, "") {
		n++
	}
	return n
}

func (s *site) update(f func(tx *store.Tx)) {
	s.t.Helper()
	if err := s.store.Update(s.t.Context(), func(tx *store.Tx) error { f(tx); return nil }); err != nil {
		s.t.Fatal(err)
	}
	synctest.Wait()
}

func (s *site) assign(keys ...string) {
	s.update(func(tx *store.Tx) {
		for _, key := range keys {
			s.tables.Assignments.Put(tx, key, &recordv1.Assignment{})
		}
	})
}

// states returns the states of all statuses.
func (s *site) states() map[string]musterv1.TaskState {
	synctest.Wait()
	states := map[string]musterv1.TaskState{}
	for e := range s.tables.Statuses.Scan(s.store.Snapshot(), "") {
		states[e.Key] = e.Value.State
	}
	return states
}

// reporter remembers the last acknowledgement.
type reporter struct{ acknowledged atomic.Uint64 }

// Acknowledge implements [Reporter].
func (r *reporter) Acknowledge(sequence uint64) { r.acknowledged.Store(sequence) }

func report(sequence uint64, s musterv1.TaskState, at int64, keys ...string) Report {
	r := Report{Sequence: sequence, Statuses: map[string]*recordv1.Status{}, At: time.Now()}
	for _, key := range keys {
		r.Statuses[key] = &recordv1.Status{State: s, At: at}
		state.SetTimes(r.Statuses[key], []state.StateTime{{State: s, At: at}})
	}
	return r
}

const running = musterv1.TaskState_RUNNING

func TestReportsAreAcknowledgedAfterTheyAreWritten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.assign("n1/s/t1")
		s.failing.Store(true)
		var first, second reporter
		s.Write(&first, report(1, musterv1.TaskState_PREPARING, 10, "n1/s/t1"))
		time.Sleep(10 * time.Second)
		s.Write(&second, report(7, running, 30, "n1/s/t1"))
		s.Write(&second, report(8, musterv1.TaskState_STARTING, 20, "n1/s/t1", "n1/s/gone"))
		time.Sleep(10 * time.Second)
		if a, b := first.acknowledged.Load(), second.acknowledged.Load(); a != 0 || b != 0 || s.Waiting() != 2 {
			t.Fatalf("acknowledged %d and %d, waiting %d, while the store is unavailable", a, b, s.Waiting())
		}
		s.failing.Store(false)
		time.Sleep(3 * time.Second)
		if a, b := first.acknowledged.Load(), second.acknowledged.Load(); a != 1 || b != 8 {
			t.Errorf("acknowledged %d and %d, want 1 and 8", a, b)
		}
		if diff := cmp.Diff(map[string]musterv1.TaskState{"n1/s/t1": running}, s.states()); diff != "" {
			t.Errorf("statuses (-want +got):\n%s", diff)
		}
		e, _ := s.tables.Statuses.Get(s.store.Snapshot(), "n1/s/t1")
		if len(e.Value.Reached) != 2 || e.Value.AppliedAt == 0 {
			t.Errorf("status is %v, want the times of two states", e.Value)
		}
		// A known report is acknowledged, and costs no write.
		s.Write(&first, report(2, running, 30, "n1/s/t1"))
		synctest.Wait()
		again, _ := s.tables.Statuses.Get(s.store.Snapshot(), "n1/s/t1")
		if first.acknowledged.Load() != 2 || again.Version != e.Version {
			t.Errorf("acknowledged %d, version %d, want 2 and still %d", first.acknowledged.Load(), again.Version, e.Version)
		}
	})
}

func TestTooLargeUpdatesAreSplit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.largest = 10
		var keys []string
		for i := range 300 {
			keys = append(keys, fmt.Sprintf("n1/s/t%d", i))
		}
		s.assign(keys...)
		var from reporter
		s.Write(&from, report(1, running, 10, keys...))
		time.Sleep(time.Second)
		if got := len(s.states()); got != len(keys) || from.acknowledged.Load() != 1 {
			t.Errorf("%d of %d statuses are written, acknowledged %d", got, len(keys), from.acknowledged.Load())
		}
		// A status that never fits must not stop the others.
		s.largest, s.never = 0, keys[0]
		s.Write(&from, report(2, musterv1.TaskState_FAILED, 20, keys...))
		time.Sleep(time.Second)
		failed := 0
		for _, state := range s.states() {
			if state == musterv1.TaskState_FAILED {
				failed++
			}
		}
		if failed != len(keys)-1 || from.acknowledged.Load() != 2 {
			t.Errorf("%d statuses are written, want %d; acknowledged %d", failed, len(keys)-1, from.acknowledged.Load())
		}
	})
}

func TestSettle(t *testing.T) {
	t.Parallel()
	const orphaned = musterv1.TaskState_ORPHANED
	const failed = musterv1.TaskState_FAILED
	for name, tt := range map[string]struct {
		giveUp      GiveUp
		unconfirmed bool
		want        map[string]musterv1.TaskState
		reason      string
	}{
		"statuses without an assignment go": {
			giveUp: Keep, want: map[string]musterv1.TaskState{"n1/s/runs": running, "n1/s/failed": failed, "n2/s/gone": running},
		},
		"tasks of a node that was down for too long are orphaned": {
			giveUp: NodeDown, reason: "its node has been down for too long",
			want: map[string]musterv1.TaskState{"n1/s/runs": orphaned, "n1/s/failed": failed, "n1/s/unheard": orphaned, "n2/s/gone": running},
		},
		"tasks are kept while another dispatcher may own the shard": {
			giveUp: NodeDown, unconfirmed: true,
			want: map[string]musterv1.TaskState{"n1/s/runs": running, "n1/s/failed": failed, "n2/s/gone": running},
		},
		"an operator's removal is certain": {
			giveUp: NodeRemoved, unconfirmed: true, reason: "its node was removed from the cluster",
			want: map[string]musterv1.TaskState{"n1/s/runs": orphaned, "n1/s/failed": failed, "n1/s/unheard": orphaned, "n2/s/gone": running},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t)
				s.assign("n1/s/runs", "n1/s/failed", "n1/s/unheard")
				s.update(func(tx *store.Tx) {
					for key, state := range map[string]musterv1.TaskState{"n1/s/runs": running, "n1/s/failed": failed, "n1/s/gone": running, "n2/s/gone": running} {
						s.tables.Statuses.Put(tx, key, &recordv1.Status{State: state})
					}
				})
				s.confirmed.Store(!tt.unconfirmed)
				s.SettleNode("n1", tt.giveUp)
				if diff := cmp.Diff(tt.want, s.states()); diff != "" {
					t.Errorf("statuses (-want +got):\n%s", diff)
				}
				e, _ := s.tables.Statuses.Get(s.store.Snapshot(), "n1/s/runs")
				if got := e.Value.Error; got != tt.reason {
					t.Errorf("reason %q, want %q", got, tt.reason)
				}
				if tt.reason != "" && !e.Value.NodeToBlame {
					t.Error("the node is not to blame")
				}
			})
		})
	}
}

// A task that is given up stays so although its status was settled without that
// before, in the same batch.
func TestGivingUpWins(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.assign("n1/s/t1")
		s.failing.Store(true)
		s.Settle([]string{"n1/s/t1"}, NodeRemoved)
		synctest.Wait() // the writer retries this batch, and the next lines fill another
		s.assign("n1/s/t2")
		s.Settle([]string{"n1/s/t2"}, Keep)
		s.Settle([]string{"n1/s/t2"}, NodeRemoved)
		s.Settle([]string{"n1/s/t2"}, Keep)
		s.failing.Store(false)
		time.Sleep(5 * time.Second)
		for key, got := range s.states() {
			if got != musterv1.TaskState_ORPHANED {
				t.Errorf("task %s is %s", key, got)
			}
		}
		if n := len(s.states()); n != 2 {
			t.Errorf("%d statuses, want 2", n)
		}
	})
}

func TestUnwrittenReportsEndWithTheShard(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.assign("n1/s/t1")
		s.failing.Store(true)
		ctx, cancel := context.WithCancel(t.Context())
		w := NewWriter(s.config)
		ended := make(chan error, 1)
		go func() { ended <- w.Run(ctx) }()
		var from reporter
		w.Write(&from, report(1, running, 10, "n1/s/t1"))
		time.Sleep(10 * time.Second)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		if from.acknowledged.Load() != 0 || len(s.states()) != 0 {
			t.Errorf("acknowledged %d, statuses %v", from.acknowledged.Load(), s.states())
		}
	})
}
