package orchestratord

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/orchestratord/internal/plan"
)

// metrics is what the orchestrator counts.
type metrics struct {
	decisions  prometheus.Histogram
	changes    *prometheus.CounterVec
	commits    *prometheus.CounterVec
	created    prometheus.Histogram
	planned    prometheus.Histogram
	waiting    prometheus.Gauge
	committing prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		decisions: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "muster_orchestrator_decision_seconds",
			Help:    "Time to decide what one service needs.",
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
		created: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "muster_orchestrator_task_created_seconds",
			Help:    "Time from a user's change of a service until the record of a task that it asks for is committed. Updates, which proceed in waves, are not counted.",
			Buckets: daemon.StageBuckets(),
		}),
		planned: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "muster_orchestrator_plan_seconds",
			Help:    "Time from a decision about a service until it is committed.",
			Buckets: daemon.StageBuckets(),
		}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "muster_orchestrator_waiting_services",
			Help: "Services to decide on later, after a delay, or after a pause that follows a long decision or a failed plan.",
		}),
		committing: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "muster_orchestrator_committing_plans", Help: "Plans that are being committed.",
		}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.decisions, m.changes, m.commits, m.created, m.planned, m.waiting, m.committing} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// committed notes a plan that was carried out.
func (m *metrics) committed(p *plan.Plan, decided, now time.Time) {
	m.planned.Observe(now.Sub(decided).Seconds())
	for i := range p.Slots {
		for _, c := range p.Slots[i].Changes {
			if c.Record.GetAskedAt() > 0 && c.Reason == plan.ReasonSlotEmpty {
				m.created.Observe(max(0, now.Sub(time.UnixMilli(c.Record.AskedAt)).Seconds()))
			}
		}
	}
}
