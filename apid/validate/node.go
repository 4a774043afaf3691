package validate

import (
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Node checks what an operator says of a node.
func (v *Validator) Node(spec *musterv1.NodeSpec) error {
	var r Report
	if spec == nil {
		r.Invalid("spec", "is required")
		return r.Err()
	}
	walk(spec.ProtoReflect(), "spec", "", func(path, _ string, fd protoreflect.FieldDescriptor, value protoreflect.Value) {
		wellFormed(&r, path, fd, value)
	})
	checkLabels(&r, "spec.labels", spec.Labels)
	if spec.Role == musterv1.NodeSpec_MANAGER {
		r.Invalid("spec.role", "nodes are workers; managers are daemons, not nodes")
	}
	return r.Err()
}

// Cluster checks the cluster's settings.
func (v *Validator) Cluster(spec *musterv1.ClusterSpec) error {
	var r Report
	if spec == nil {
		r.Invalid("spec", "is required")
		return r.Err()
	}
	gaps := indexGaps(clusterGaps())
	walk(spec.ProtoReflect(), "spec", "", func(path, shape string, fd protoreflect.FieldDescriptor, value protoreflect.Value) {
		wellFormed(&r, path, fd, value)
		for _, g := range gaps[shape] {
			g.report(&r, path, value)
		}
	})
	checkLabels(&r, "spec.labels", spec.Labels)
	if p := spec.GetDispatcher().GetHeartbeatPeriod(); p != nil && p.IsValid() {
		if d := p.AsDuration(); d < 100*time.Millisecond || d > time.Hour {
			r.Invalid("spec.dispatcher.heartbeatPeriod", "must be from 100 ms to 1 h")
		}
	}
	if n := spec.GetNetwork(); n != nil && n.MaxNetworks != nil && n.GetMaxNetworks() == 0 {
		r.Invalid("spec.network.maxNetworks", "is 0, and services would get no network; give a number from 1 on")
	}
	checkPools(&r, "spec.network.addressPools", spec.GetNetwork().GetAddressPools())
	checkReservedPorts(&r, "spec.network.reservedPorts.ports", spec.GetNetwork().GetReservedPorts().GetPorts())
	return r.Err()
}
