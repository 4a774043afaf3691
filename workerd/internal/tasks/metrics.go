package tasks

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// metrics measures what is done about tasks.
type metrics struct {
	calls [actions]prometheus.Observer
	// running is nil if there is no registerer.
	running prometheus.Observer
}

// newMetrics returns metrics. Without a registerer they are not counted.
func newMetrics(reg prometheus.Registerer, count func() map[musterv1.TaskState]int) *metrics {
	m := &metrics{}
	if reg == nil {
		return m
	}
	calls := promauto.With(reg).NewHistogramVec(prometheus.HistogramOpts{
		Name:    "muster_worker_task_call_seconds",
		Help:    "Duration of calls to executors and network plugins about tasks.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 12),
	}, []string{"call"})
	m.running = promauto.With(reg).NewHistogram(prometheus.HistogramOpts{
		Name:    "muster_worker_task_running_seconds",
		Help:    "Time from the acceptance of a task until it runs and that is stored. Tasks that were not allowed to start at once are not counted.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
	})
	for a := range actions {
		switch a {
		case actPrepare, actAttach, actStart, actShutdown, actUpdate, actDetach, actRemove:
			m.calls[a] = calls.WithLabelValues(a.String())
		}
	}
	reg.MustRegister(&stateCollector{
		desc:  prometheus.NewDesc("muster_worker_tasks", "Tasks that the worker holds, by observed state.", []string{"state"}, nil),
		count: count,
	})
	return m
}

// done notes that a call has returned.
func (m *metrics) done(what action, took time.Duration) {
	if o := m.calls[what]; o != nil {
		o.Observe(took.Seconds())
	}
}

// runs notes that a task runs and that this is stored. AcceptedAt is zero if the
// task must not be counted.
func (m *metrics) runs(acceptedAt time.Time) {
	if m.running != nil && !acceptedAt.IsZero() {
		m.running.Observe(max(0, time.Since(acceptedAt).Seconds()))
	}
}

// stateCollector counts tasks when metrics are collected.
type stateCollector struct {
	desc  *prometheus.Desc
	count func() map[musterv1.TaskState]int
}

func (c *stateCollector) Describe(out chan<- *prometheus.Desc) { out <- c.desc }

func (c *stateCollector) Collect(out chan<- prometheus.Metric) {
	for state, n := range c.count() {
		out <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(n), state.String())
	}
}
