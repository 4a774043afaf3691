package tasks

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
)

// metrics counts what is done about tasks.
type metrics struct {
	calls [actions]prometheus.Observer
	// running is nil if nobody counts.
	running prometheus.Observer
}

// newMetrics returns metrics that are registered if there is a registerer, and
// else count for nobody.
func newMetrics(reg prometheus.Registerer, count func() map[musterv1.TaskState]int) *metrics {
	m := &metrics{}
	if reg == nil {
		return m
	}
	calls := promauto.With(reg).NewHistogramVec(prometheus.HistogramOpts{
		Name:    "muster_worker_task_call_seconds",
		Help:    "How long calls to executors took.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 12),
	}, []string{"call"})
	m.running = promauto.With(reg).NewHistogram(prometheus.HistogramOpts{
		Name:    "muster_worker_task_running_seconds",
		Help:    "Time from the acceptance of a task until it runs and that is kept. Tasks that had to wait before they might start are not counted.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
	})
	for a := range actions {
		switch a {
		case actPrepare, actStart, actShutdown, actUpdate, actRemove:
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

// runs notes that a task runs, and that this is kept.
func (m *metrics) runs(s *lifecycle.Status) {
	if m.running != nil && len(s.Times) > 0 && s.Times[0].State == musterv1.TaskState_ACCEPTED {
		m.running.Observe(max(0, time.Since(s.Times[0].At).Seconds()))
	}
}

// stateCollector counts tasks when it is asked to.
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
