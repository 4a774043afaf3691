package liveness

import (
	"sync/atomic"
	"time"

	"github.com/musterhq/muster/internal/state"
)

// Periods decides how often workers send heartbeats. It counts the sessions of all
// shards: with more sessions than the dispatcher is meant for, the period grows, so
// that the cost of heartbeats is limited.
type Periods struct {
	usual     time.Duration
	crowded   int
	store     Store
	tables    *state.Tables
	connected atomic.Int64
}

// NewPeriods returns periods. The usual period applies unless the cluster's
// settings contain one, and up to a number of connected nodes.
func NewPeriods(usual time.Duration, crowded int, store Store, tables *state.Tables) *Periods {
	return &Periods{usual: usual, crowded: crowded, store: store, tables: tables}
}

// Connected returns the number of sessions.
func (p *Periods) Connected() int { return int(p.connected.Load()) }

// current returns the period that workers should have now.
func (p *Periods) current() time.Duration {
	period := p.usual
	if c, ok := p.tables.Clusters.Get(p.store.Snapshot(), state.ClusterID); ok {
		if set := c.Value.GetSpec().GetDispatcher().GetHeartbeatPeriod().AsDuration(); set > 0 {
			period = set
		}
	}
	if n := p.Connected(); n > p.crowded {
		period = period * time.Duration(n) / time.Duration(p.crowded)
	}
	return period
}

// differs reports whether a worker's period differs from the current one so much
// that the worker must be told: by more than a quarter.
func differs(period, current time.Duration) bool {
	return period < current*4/5 || period > current*5/4
}
