package orchestratord

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics is what the orchestrator counts.
type metrics struct {
	looks   prometheus.Histogram
	changes *prometheus.CounterVec
	commits *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		looks: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "muster_orchestrator_look_seconds",
			Help:    "Time to look at one service and decide what to do.",
			Buckets: prometheus.ExponentialBuckets(1e-5, 4, 8),
		}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_orchestrator_changes_total",
			Help: "Changes of tasks that were decided and committed, by reason.",
		}, []string{"reason"}),
		commits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_orchestrator_plans_total",
			Help: "Plans, by what became of them: committed, stale, failed.",
		}, []string{"result"}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.looks, m.changes, m.commits} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}
