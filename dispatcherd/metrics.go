package dispatcherd

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/liveness"
)

// collector counts nodes and sessions when metrics are collected.
type collector struct {
	shards  *ownedShards
	lag     *liveness.HeartbeatLag
	periods *liveness.Periods

	nodes, connected, unwritten, extension *prometheus.Desc
}

func newCollector(shards *ownedShards, cfg liveness.Config) collector {
	describe := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("muster_dispatcher_"+name, help, labels, nil)
	}
	return collector{
		shards: shards, lag: cfg.Lag, periods: cfg.Periods,
		nodes:     describe("nodes", "Nodes of this replica's shards, by state.", "state"),
		connected: describe("connected_nodes", "Workers with a session at this replica."),
		unwritten: describe("unwritten_statuses", "Reported task statuses that wait for the write before theirs to end."),
		extension: describe("deadline_extension_factor",
			"Factor by which node timeouts are currently extended because heartbeats from at least half of this dispatcher's workers are overdue (1 = not extended). A timeout is extended to at most 30 s, or to twice its usual length."),
	}
}

// Describe implements [prometheus.Collector].
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.nodes, c.connected, c.unwritten, c.extension} {
		out <- d
	}
}

// Collect implements [prometheus.Collector].
func (c collector) Collect(out chan<- prometheus.Metric) {
	count := map[musterv1.NodeStatus_State]int{
		musterv1.NodeStatus_READY: 0, musterv1.NodeStatus_DOWN: 0,
		musterv1.NodeStatus_DISCONNECTED: 0, musterv1.NodeStatus_UNKNOWN: 0,
	}
	unwritten := 0
	for _, s := range c.shards.all() {
		s.Count(count)
		unwritten += s.Waiting()
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for state, n := range count {
		gauge(c.nodes, float64(n), liveness.StateName(state))
	}
	gauge(c.unwritten, float64(unwritten))
	gauge(c.extension, c.lag.Factor(time.Now()))
	gauge(c.connected, float64(c.periods.Connected()))
}

var _ prometheus.Collector = collector{}
