package liveness

import (
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// fewNodes is the number of nodes from which on heartbeatLag applies. Of fewer
	// nodes, most may well fail together.
	fewNodes = 20
	// lagPeriod is how long a measurement is valid.
	lagPeriod = 250 * time.Millisecond
)

// HeartbeatLag tracks how late heartbeats arrive across all workers. A dispatcher
// that is short of CPU or bandwidth hears all workers late. If it took them for
// dead and replaced their tasks, it would have even more to do. Kubernetes' node
// lifecycle controller stops for the same reason when most nodes of a zone are not
// ready.
type HeartbeatLag struct {
	log *zap.Logger

	mu       sync.Mutex
	trackers map[*Tracker]struct{}
	measured time.Time
	factor   float64
}

// NewHeartbeatLag returns a lag without trackers.
func NewHeartbeatLag(log *zap.Logger) *HeartbeatLag {
	return &HeartbeatLag{log: log, trackers: map[*Tracker]struct{}{}}
}

func (h *HeartbeatLag) add(t *Tracker) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.trackers[t] = struct{}{}
}

func (h *HeartbeatLag) remove(t *Tracker) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.trackers, t)
}

// Factor returns the factor that timeouts are extended by. It is 1 unless
// heartbeats of at least half of all nodes are overdue.
func (h *HeartbeatLag) Factor(now time.Time) float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.factor > 0 && now.Sub(h.measured) < lagPeriod {
		return h.factor
	}
	before := h.factor
	var silences []float64
	for t := range h.trackers {
		silences = t.silences(silences, now)
	}
	h.factor, h.measured = lagFactor(silences), now
	switch {
	case h.factor > 1 && before <= 1:
		h.log.Warn("heartbeats of most workers are overdue: this dispatcher or its network is overloaded, or the workers failed together; extending timeouts",
			zap.Int("nodes", len(silences)), zap.Float64("factor", h.factor))
	case h.factor <= 1 && before > 1:
		h.log.Info("timeouts are no longer extended", zap.Int("nodes", len(silences)))
	}
	return h.factor
}

// lagFactor computes the factor from how long each node has been silent, in
// heartbeat periods. Usually, half of the nodes have been silent for less than half
// a period, and none for more than one. If half of them have been silent for
// longer, by more than delays explain, the time between two heartbeats is at least
// twice that.
func lagFactor(silences []float64) float64 {
	if len(silences) < fewNodes {
		return 1
	}
	slices.Sort(silences)
	median := silences[len(silences)/2]
	if median <= 1.5 {
		return 1
	}
	return 2 * median
}
