package pluginhost

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics counts the lives of plugins, by kind.
type metrics struct {
	starts map[*kind]*prometheus.CounterVec
	up     map[*kind]*prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		starts: map[*kind]*prometheus.CounterVec{
			executorKind: f.NewCounterVec(prometheus.CounterOpts{
				Name: "muster_worker_executor_starts_total", Help: "Attempts to start an executor plugin, by result.",
			}, []string{"executor", "result"}),
			networkKind: f.NewCounterVec(prometheus.CounterOpts{
				Name: "muster_worker_network_plugin_starts_total", Help: "Attempts to start a network plugin, by result.",
			}, []string{"plugin", "result"}),
		},
		up: map[*kind]*prometheus.GaugeVec{
			executorKind: f.NewGaugeVec(prometheus.GaugeOpts{
				Name: "muster_worker_executor_up", Help: "1 while an executor plugin's process runs.",
			}, []string{"executor"}),
			networkKind: f.NewGaugeVec(prometheus.GaugeOpts{
				Name: "muster_worker_network_plugin_up", Help: "1 while a network plugin's process runs.",
			}, []string{"plugin"}),
		},
	}
}

// started notes an attempt to start a plugin.
func (m *metrics) started(k *kind, name string, err error) {
	m.starts[k].WithLabelValues(name, result(err)).Inc()
}

// runs notes whether a plugin's process runs.
func (m *metrics) runs(k *kind, name string, up float64) { m.up[k].WithLabelValues(name).Set(up) }
