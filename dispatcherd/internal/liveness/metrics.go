package liveness

import (
	"github.com/prometheus/client_golang/prometheus"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Metrics count the changes of nodes' states.
type Metrics struct{ transitions *prometheus.CounterVec }

// NewMetrics registers metrics, unless r is nil.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "muster_dispatcher_node_transitions_total", Help: "Changes of nodes' states that were written, by the new state.",
	}, []string{"state"})}
	if r == nil {
		return m, nil
	}
	return m, r.Register(m.transitions)
}

// StateName returns the name of a node state in logs and metrics. A node without a
// record has the state "none".
func StateName(s musterv1.NodeStatus_State) string {
	if s == musterv1.NodeStatus_STATE_UNSPECIFIED {
		return "none"
	}
	return s.String()
}
