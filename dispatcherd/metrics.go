package dispatcherd

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/liveness"
	"github.com/musterhq/muster/internal/daemon"
)

// metrics are what a dispatcher counts.
type metrics struct {
	tasks     prometheus.Counter
	specs     prometheus.Counter
	withdrawn prometheus.Counter
	sent      prometheus.Histogram
	running   prometheus.Histogram
	refused   prometheus.Counter
}

func newMetrics(r prometheus.Registerer, c census) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "muster_dispatcher_" + name, Help: help})
	}
	m := &metrics{
		tasks:     counter("assignments_sent_total", "Tasks that were sent to workers, new or changed."),
		specs:     counter("specs_sent_total", "Task specs that were sent to workers."),
		refused:   counter("rival_workers_refused_total", "Attempts of a second worker to be a node that is connected."),
		withdrawn: counter("assignments_withdrawn_total", "Tasks that workers were told to remove."),
		sent: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "muster_dispatcher_task_sent_seconds",
			Help:    "Time from a task's assignment until it is sent to its worker. Tasks that were assigned before their worker's session began are not counted.",
			Buckets: daemon.StageBuckets(),
		}),
		running: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "muster_dispatcher_task_running_seconds",
			Help:    "Time from a task's assignment until its worker has reported that it runs. Tasks that had to wait before they might start are not counted.",
			Buckets: daemon.StageBuckets(),
		}),
	}
	if r == nil {
		return m, nil
	}
	var faults []error
	for _, c := range []prometheus.Collector{
		m.tasks, m.specs, m.withdrawn, m.sent, m.running, m.refused, c,
	} {
		if err := r.Register(c); err != nil {
			faults = append(faults, fmt.Errorf("register: %w", err))
		}
	}
	return m, errors.Join(faults...)
}

// told counts what a worker was told.
func (m *metrics) told(a *dispatcherv1.Assignments) {
	tasks, specs, withdrawn := len(a.Tasks), len(a.Specs), len(a.Removed)
	for _, object := range a.Objects {
		switch object.Object.(type) {
		case *dispatcherv1.AssignedObject_Task:
			tasks++
		case *dispatcherv1.AssignedObject_Spec:
			specs++
		}
	}
	for _, ref := range a.Withdrawn {
		if _, ok := ref.Ref.(*dispatcherv1.ObjectRef_Task); ok {
			withdrawn++
		}
	}
	m.tasks.Add(float64(tasks))
	m.specs.Add(float64(specs))
	m.withdrawn.Add(float64(withdrawn))
}

// census counts nodes and sessions when metrics are collected.
type census struct {
	shards           func() []*shard
	lag              *liveness.HeartbeatLag
	periods          *liveness.Periods
	nodes, connected *prometheus.Desc
	unwritten        *prometheus.Desc
	lateness         *prometheus.Desc
}

func newCensus(shards func() []*shard, cfg liveness.Config) census {
	return census{
		shards: shards, lag: cfg.Lag, periods: cfg.Periods,
		nodes:     prometheus.NewDesc("muster_dispatcher_nodes", "Nodes of this replica's shards, by state.", []string{"state"}, nil),
		connected: prometheus.NewDesc("muster_dispatcher_connected_nodes", "Workers with a session at this replica.", nil, nil),
		unwritten: prometheus.NewDesc("muster_dispatcher_unwritten_statuses", "Reported task statuses that wait for the write before theirs to end.", nil, nil),
		lateness: prometheus.NewDesc("muster_dispatcher_hearing_lateness",
			"Factor by which node timeouts are currently extended because heartbeats from at least half of this dispatcher's workers are overdue (1 = not extended). A timeout is extended to at most 30 s, or to twice its usual length.", nil, nil),
	}
}

// Describe implements [prometheus.Collector].
func (c census) Describe(out chan<- *prometheus.Desc) {
	out <- c.nodes
	out <- c.connected
	out <- c.unwritten
	out <- c.lateness
}

// Collect implements [prometheus.Collector].
func (c census) Collect(out chan<- prometheus.Metric) {
	count := map[musterv1.NodeStatus_State]int{
		musterv1.NodeStatus_READY: 0, musterv1.NodeStatus_DOWN: 0,
		musterv1.NodeStatus_DISCONNECTED: 0, musterv1.NodeStatus_UNKNOWN: 0,
	}
	unwritten := 0
	for _, s := range c.shards() {
		s.Count(count)
		unwritten += s.Waiting()
	}
	out <- prometheus.MustNewConstMetric(c.unwritten, prometheus.GaugeValue, float64(unwritten))
	for state, n := range count {
		out <- prometheus.MustNewConstMetric(c.nodes, prometheus.GaugeValue, float64(n), liveness.StateName(state))
	}
	out <- prometheus.MustNewConstMetric(c.lateness, prometheus.GaugeValue, c.lag.Factor(time.Now()))
	out <- prometheus.MustNewConstMetric(c.connected, prometheus.GaugeValue, float64(c.periods.Connected()))
}

var _ prometheus.Collector = census{}
