package statuses

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// Why reported statuses change nothing.
const (
	// ignoredForeign: the node was not sent the task, or no worker can observe the
	// state.
	ignoredForeign = "foreign"
	// ignoredUnassigned: the assignment is gone.
	ignoredUnassigned = "unassigned"
	// ignoredKnown: the status, or a later one, is known.
	ignoredKnown = "known"
)

// Metrics count statuses.
type Metrics struct {
	applied       prometheus.Counter
	ignored       *prometheus.CounterVec
	reportSeconds prometheus.Histogram
}

// NewMetrics registers metrics, unless r is nil.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		applied: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_dispatcher_statuses_applied_total", Help: "Task statuses that were written.",
		}),
		ignored: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_dispatcher_statuses_ignored_total", Help: "Reported task statuses that changed nothing, by reason.",
		}, []string{"reason"}),
		reportSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "muster_dispatcher_report_seconds", Help: "Time from a status report's arrival until it is written and acknowledged.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
	}
	if r == nil {
		return m, nil
	}
	return m, errors.Join(r.Register(m.applied), r.Register(m.ignored), r.Register(m.reportSeconds))
}

// IgnoreForeign counts statuses of tasks that the node was not sent.
func (m *Metrics) IgnoreForeign(n int) { m.ignored.WithLabelValues(ignoredForeign).Add(float64(n)) }
