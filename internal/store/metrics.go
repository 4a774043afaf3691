package store

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the metrics of one store.
type metrics struct {
	commitSeconds prometheus.Histogram
	commitOps     prometheus.Histogram
	commitBytes   prometheus.Histogram
	commitUpdates prometheus.Histogram
	updateSeconds prometheus.Histogram
	pending       prometheus.Gauge
	conflicts     prometheus.Counter
	retries       prometheus.Counter
	wakeups       *prometheus.CounterVec
	pagesRead     *prometheus.CounterVec
	staleness     prometheus.GaugeFunc
	lagSeconds    prometheus.GaugeFunc
	lagCommits    prometheus.GaugeFunc
}

func newMetrics(status func() Status) *metrics {
	name := func(n string) prometheus.Opts {
		return prometheus.Opts{Namespace: "muster", Subsystem: "store", Name: n}
	}
	histogram := func(n, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "muster", Subsystem: "store", Name: n, Help: help, Buckets: buckets,
		})
	}
	counter := func(n, help string) *prometheus.CounterVec {
		o := prometheus.CounterOpts(name(n))
		o.Help = help
		return prometheus.NewCounterVec(o, []string{"table"})
	}
	gauge := func(n, help string, read func(Status) float64) prometheus.GaugeFunc {
		o := prometheus.GaugeOpts(name(n))
		o.Help = help
		return prometheus.NewGaugeFunc(o, func() float64 { return read(status()) })
	}
	conflicts := prometheus.CounterOpts(name("commit_conflicts_total"))
	conflicts.Help = "Transactions that were repeated because another process had changed the same records."
	retries := prometheus.CounterOpts(name("commit_retries_total"))
	retries.Help = "Transactions that were sent again because the key-value store did not answer."
	queued := prometheus.GaugeOpts(name("pending_updates"))
	queued.Help = "Updates that have no result yet."
	return &metrics{
		updateSeconds: histogram("update_seconds", "Time of a call that updates records: queueing, conflicts and commits.",
			prometheus.ExponentialBuckets(0.0005, 2, 15)),
		pending: prometheus.NewGauge(queued),
		retries: prometheus.NewCounter(retries),
		commitSeconds: histogram("commit_seconds", "Time from sending a transaction until it is known to be applied.",
			prometheus.ExponentialBuckets(0.0005, 2, 15)),
		commitOps: histogram("commit_ops", "Number of operations of a committed transaction.",
			prometheus.ExponentialBuckets(1, 2, 8)),
		commitBytes: histogram("commit_bytes", "Size of the values of a committed transaction, in bytes.",
			prometheus.ExponentialBuckets(256, 4, 7)),
		commitUpdates: histogram("commit_updates", "Number of updates in a committed transaction.",
			prometheus.ExponentialBuckets(1, 4, 8)),
		conflicts: prometheus.NewCounter(conflicts),
		wakeups:   counter("watch_wakeups_total", "Answers to blocking lists of a table's heads."),
		pagesRead: counter("pages_read_total", "Pages of a table that were read."),
		staleness: gauge("staleness_seconds", "Time since the last successful call of the key-value store; 0 while calls succeed.",
			func(s Status) float64 { return s.Stale.Seconds() }),
		lagSeconds: gauge("view_lag_seconds", "Time for which the view may have been incomplete: since the last successful call of the "+
			"key-value store, or since the first commit was seen that the view lacks.",
			func(s Status) float64 { return s.Lag().Seconds() }),
		lagCommits: gauge("view_lag_commits", "Commits that were seen in the key-value store and that the view still lacks.",
			func(s Status) float64 { return float64(s.Behind) }),
	}
}

// register adds the metrics to a registry.
func (m *metrics) register(r prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{
		m.commitSeconds, m.commitOps, m.commitBytes, m.commitUpdates,
		m.updateSeconds, m.pending, m.conflicts, m.retries, m.wakeups, m.pagesRead, m.staleness, m.lagSeconds, m.lagCommits,
	} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *metrics) committed(took time.Duration, p *plan, updates int) {
	m.commitSeconds.Observe(took.Seconds())
	m.commitOps.Observe(float64(len(p.ops)))
	m.commitBytes.Observe(float64(p.bytes))
	m.commitUpdates.Observe(float64(updates))
}
