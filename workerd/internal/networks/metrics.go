package networks

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.uber.org/zap"

	"github.com/musterhq/muster/workerd/network"
)

// metrics measures what network plugins do.
type metrics struct {
	applies *prometheus.HistogramVec
	gauges  map[string]*prometheus.GaugeVec
}

// newMetrics returns metrics. Without a registerer they are not counted.
func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{gauges: map[string]*prometheus.GaugeVec{}}
	if reg == nil {
		return m
	}
	f := promauto.With(reg)
	m.applies = f.NewHistogramVec(prometheus.HistogramOpts{
		Name: "muster_worker_network_apply_seconds", Help: "Time that a network plugin takes to set up changes of networks, by result.",
		Buckets: prometheus.ExponentialBuckets(0.001, 3, 10),
	}, []string{"plugin", "result"})
	for name, help := range map[string]string{
		"networks":          "Networks that a network plugin has set up.",
		"services":          "Services that a network plugin has set up.",
		"backends":          "Tasks that get the traffic of services, as a network plugin has set them up.",
		"tasks":             "Tasks that a network plugin has attached.",
		"dns_answers":       "Names that a network plugin has answered since its process began.",
		"dns_failures":      "Names that a network plugin could not answer since its process began.",
		"dropped_packets":   "Packets that a network plugin's rules dropped since its process began.",
		"conntrack_entries": "Connections that the kernel tracks for networks.",
		"conntrack_limit":   "Connections that the kernel can track.",
		"repairs":           "Differences between kernel and networks that a plugin has repaired since its process began.",
	} {
		m.gauges[name] = f.NewGaugeVec(prometheus.GaugeOpts{Name: "muster_worker_network_" + name, Help: help}, []string{"plugin"})
	}
	return m
}

// applied notes that an Apply has returned.
func (m *metrics) applied(plugin string, err error, took time.Duration) {
	if m.applies == nil {
		return
	}
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.applies.WithLabelValues(plugin, result).Observe(took.Seconds())
}

// stats notes what a plugin says.
func (m *metrics) stats(plugin string, s *network.Stats) {
	for name, value := range map[string]uint64{
		"networks": s.Networks, "services": s.Services, "backends": s.Backends, "tasks": s.Tasks,
		"dns_answers": s.DNSAnswers, "dns_failures": s.DNSFailures, "dropped_packets": s.DroppedPackets,
		"conntrack_entries": s.ConntrackEntries, "conntrack_limit": s.ConntrackLimit, "repairs": s.Repairs,
	} {
		if g := m.gauges[name]; g != nil {
			g.WithLabelValues(plugin).Set(float64(value))
		}
	}
}

func taskField(id string) zap.Field { return zap.String("task", id) }
