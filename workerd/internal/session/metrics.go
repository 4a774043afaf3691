package session

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics counts sessions and reports.
type metrics struct {
	begun     prometheus.Counter
	ended     *prometheus.CounterVec
	connected prometheus.Gauge
	reports   prometheus.Counter
	statuses  prometheus.Counter
}

// newMetrics returns metrics, registered if there is a registerer.
func newMetrics(reg prometheus.Registerer, unreported func() int) *metrics {
	f := promauto.With(reg)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "muster_worker_unreported_statuses", Help: "Task statuses that are yet to be reported.",
	}, func() float64 { return float64(unreported()) })
	return &metrics{
		begun: f.NewCounter(prometheus.CounterOpts{
			Name: "muster_worker_sessions_total", Help: "Sessions that a dispatcher welcomed.",
		}),
		ended: f.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_worker_sessions_ended_total", Help: "Attempts and sessions that ended, by reason.",
		}, []string{"reason"}),
		connected: f.NewGauge(prometheus.GaugeOpts{
			Name: "muster_worker_connected", Help: "1 while there is a session with a dispatcher.",
		}),
		reports: f.NewCounter(prometheus.CounterOpts{
			Name: "muster_worker_reports_total", Help: "Status reports sent.",
		}),
		statuses: f.NewCounter(prometheus.CounterOpts{
			Name: "muster_worker_reported_statuses_total", Help: "Task statuses in the reports sent.",
		}),
	}
}
