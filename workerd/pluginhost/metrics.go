package pluginhost

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics counts the lives of plugins.
type metrics struct {
	starts *prometheus.CounterVec
	up     *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		starts: f.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_worker_executor_starts_total", Help: "Attempts to start an executor plugin, by result.",
		}, []string{"executor", "result"}),
		up: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "muster_worker_executor_up", Help: "1 while an executor plugin's process runs.",
		}, []string{"executor"}),
	}
}
