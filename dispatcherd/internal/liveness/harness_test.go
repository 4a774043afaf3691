package liveness

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/statuses"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/payload"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

const (
	period  = 2 * time.Second
	unknown = musterv1.NodeStatus_UNKNOWN
	ready   = musterv1.NodeStatus_READY
	away    = musterv1.NodeStatus_DISCONNECTED
	isDown  = musterv1.NodeStatus_DOWN
)

// site is what trackers need: a store in memory, and sessions that tests control.
type site struct {
	t      *testing.T
	cfg    Config
	store  *store.Store
	tables *state.Tables

	mu      sync.Mutex
	settled []string
	// lost says that the locks belong to another replica.
	lost bool
}

func newSite(t *testing.T) *site {
	t.Helper()
	space, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, tables: state.NewTables()}
	log := zaptest.NewLogger(t)
	ts := s.tables
	s.store, err = store.New(store.Options{KV: space, Prefix: "muster", Logger: log}, ts.Services, ts.Nodes, ts.Clusters, ts.NodeStates)
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := NewMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	s.cfg = Config{
		Timeouts: timeouts(), Store: s.store, Tables: s.tables, Schemas: payload.NewSchemas(),
		Pauses: NewPauseDetector(log), Lag: NewHeartbeatLag(log), Periods: NewPeriods(period, 2000, s.store, s.tables),
		Metrics: metrics, Logger: log,
	}
	s.run(s.store.Run)
	s.run(s.cfg.Pauses.Run)
	if err := s.store.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// run runs f until the test or the returned function ends it.
func (s *site) run(f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(ctx); err != nil && !errors.Is(err, context.Canceled) {
			s.t.Error(err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	s.t.Cleanup(stop)
	return stop
}

// tracker runs the tracker of the shard of a node.
func (s *site) tracker(node string) *Tracker {
	shard := store.ShardOf(node)
	t := NewTracker(s.cfg, shard, NewOwnership(shard, s, s.cfg.Pauses, s.cfg.Logger), s)
	snap := s.store.Snapshot()
	t.Load(snap)
	s.run(func(ctx context.Context) error {
		for {
			next, err := s.store.Wait(ctx, snap, s.tables.Nodes, s.tables.NodeStates, s.tables.Clusters)
			if err != nil {
				return err
			}
			for c := range s.tables.NodeStates.Changes(snap, next) {
				if c.New == nil {
					t.NodeStateChanged(c.Key(), nil)
				} else {
					t.NodeStateChanged(c.Key(), c.New.Value)
				}
			}
			for c := range s.tables.Nodes.Changes(snap, next) {
				t.NodeChanged(c.Key())
			}
			for range s.tables.Clusters.Changes(snap, next) {
				t.ClusterChanged()
			}
			snap = next
		}
	})
	s.run(t.Run)
	return t
}

// Holds implements [Locks].
func (s *site) Holds(context.Context, int) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.lost, nil
}

func (s *site) loseLocks() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = true
}

// Settle implements [StatusWriter].
func (s *site) Settle(keys []string, giveUp statuses.GiveUp) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		s.settled = append(s.settled, fmt.Sprintf("%s %d", key, giveUp))
	}
}

// SettleNode implements [StatusWriter].
func (s *site) SettleNode(node string, giveUp statuses.GiveUp) {
	s.Settle([]string{node + "/"}, giveUp)
}

// wasSettled returns what was settled since the last call.
func (s *site) wasSettled() []string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.settled
	s.settled = nil
	return all
}

func (s *site) update(f func(tx *store.Tx)) {
	s.t.Helper()
	if err := s.store.Update(s.t.Context(), func(tx *store.Tx) error { f(tx); return nil }); err != nil {
		s.t.Fatal(err)
	}
	synctest.Wait()
}

func (s *site) record(node string) *recordv1.NodeState {
	synctest.Wait()
	e, _ := s.tables.NodeStates.Get(s.store.Snapshot(), node)
	return e.Value
}

func (s *site) want(node string, state musterv1.NodeStatus_State) {
	s.t.Helper()
	if got := s.record(node); got.GetState() != state {
		s.t.Fatalf("node %s is %s (%s), want %s", node, got.GetState(), got.GetMessage(), state)
	}
}

// session is a session that a test controls.
type session struct {
	worker Worker

	mu       sync.Mutex
	heard    time.Time
	epoch    uint64
	period   time.Duration
	told     int
	networks []string
	assigned []string
	objects  int
	members  int
	ended    bool
	err      error
}

// connect attaches a session, which begins now unless the worker says otherwise,
// and returns it even if it is refused.
func (s *site) connect(t *Tracker, w Worker) (*session, error) {
	if w.Begun.IsZero() {
		w.Begun = time.Now()
	}
	sess := &session{worker: w, heard: time.Now()}
	return sess, t.Attach(sess, &dispatcherv1.Hello{NodeId: w.Node, InstanceId: w.Instance, Description: &musterv1.NodeDescription{Hostname: w.Node + ".example"}})
}

func (s *site) mustConnect(t *Tracker, node string) *session {
	s.t.Helper()
	sess, err := s.connect(t, Worker{Node: node, Instance: "1", Address: "10.0.0.1"})
	if err != nil {
		s.t.Fatal(err)
	}
	return sess
}

func (s *session) Worker() Worker { return s.worker }

func (s *session) LastHeard() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heard
}

func (s *session) Bind(epoch uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch = epoch
	return !s.ended
}

func (s *session) SetPeriod(period time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.period = period
}

func (s *session) SettingsChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told++
}

func (s *session) AssignmentsChanged(keys []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.assigned = append(s.assigned, keys...)
	return !s.ended
}

func (s *session) NetworksChanged(ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.networks = append(s.networks, ids...)
}

func (s *session) ObjectsChanged([]assignments.Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects++
}

func (s *session) DispatchersChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.members++
}

func (s *session) End(err error, _ *dispatcherv1.SessionResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended, s.err = true, err
	}
}

// end returns how the session ended, nil if it has not.
func (s *session) end() error {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// heartbeat is what a session does for each heartbeat.
func (s *session) heartbeat(t *Tracker) {
	s.mu.Lock()
	s.heard = time.Now()
	current := s.period
	s.mu.Unlock()
	t.AdjustPeriod(s, current)
}

// live sends heartbeats for so long.
func (s *session) live(t *Tracker, d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		s.heartbeat(t)
		time.Sleep(min(time.Second, time.Until(end)))
	}
}

// close ends the session without a goodbye.
func (s *session) close(t *Tracker) {
	s.End(errors.New("closed"), nil)
	t.Detach(s, Closed)
}
