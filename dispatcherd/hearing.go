package dispatcherd

import (
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// With fewer than fewNodes each is judged for itself: of so few, most may well die
	// together.
	fewNodes = 20
	// hearingPeriod is for how long a measurement of the hearing holds.
	hearingPeriod = 250 * time.Millisecond
)

// hearing knows how late this dispatcher hears its workers on the whole. One that has
// too little CPU, or a network that is too slow, hears all of them late, and all of
// them it: to take them for dead and replace their tasks would give it still more to
// do. Kubernetes' node lifecycle controller stops for the same reason when most nodes
// of a zone are not ready.
type hearing struct {
	d *Daemon

	mu       sync.Mutex
	measured time.Time
	factor   float64
}

// lateness returns how many times its usual time each node is to be given: 1, unless
// half of all nodes and more are overdue.
func (h *hearing) lateness(now time.Time) float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.factor > 0 && now.Sub(h.measured) < hearingPeriod {
		return h.factor
	}
	before := h.factor
	var silences []float64
	for _, s := range h.d.shards() {
		silences = s.silences(silences, now)
	}
	h.factor, h.measured = lateness(silences), now
	switch {
	case h.factor > 1 && before <= 1:
		h.d.log.Warn("most workers are heard late: this dispatcher or its network has too much to do, or they have failed together; nodes are given more time",
			zap.Int("nodes", len(silences)), zap.Float64("times", h.factor))
	case h.factor <= 1 && before > 1:
		h.d.log.Info("nodes are given their usual time again", zap.Int("nodes", len(silences)))
	}
	return h.factor
}

// lateness works it out of how long each node has been silent, in heartbeat periods.
// Half of them have been for less than half a period, as a rule, and none that is heard
// in time for more than one. Where half have been for longer than that, by more than
// delays explain, what comes between two heartbeats is twice as much at least.
func lateness(silences []float64) float64 {
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

// silences appends how long each of the shard's nodes that lived a moment ago has
// been silent, in heartbeat periods, since this process runs without a break.
func (s *shard) silences(to []float64, now time.Time) []float64 {
	runs := s.d.pulse.since(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		switch {
		case n.session != nil:
			life := n.heard().hear(runs)
			to = append(to, now.Sub(life.heard).Seconds()/time.Duration(n.session.period.Load()).Seconds())
		case n.life.phase == closed:
			to = append(to, float64(s.d.cfg.HeartbeatMisses))
		}
	}
	return to
}
