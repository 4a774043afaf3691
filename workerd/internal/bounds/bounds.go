// Package bounds limits what an executor says of a task or of itself, before the
// worker stores or reports it. A report that is too large for a dispatcher would
// end each session that it is sent in.
package bounds

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/nodereport"
)

// MaxLogLine limits a line of output, in bytes. The executor contract promises no
// longer one.
const MaxLogLine = 16 << 10

// Text returns a text of at most limit bytes, in valid UTF-8. A text that was clipped
// ends with how long it was.
func Text(text string, limit int) string {
	if len(text) <= limit {
		if valid := strings.ToValidUTF8(text, "\uFFFD"); len(valid) <= limit {
			return valid
		}
	}
	mark := fmt.Sprintf("... (clipped, %d bytes)", len(text))
	return strings.ToValidUTF8(text[:max(limit-len(mark), 0)], "") + mark
}

// Runtime returns a runtime status within the limits and without unknown fields: the
// same one, or a copy.
func Runtime(r *musterv1.RuntimeStatus) *musterv1.RuntimeStatus {
	return runtime(r, nodereport.MaxHealthOutput)
}

// ContainerRuntime returns the runtime status of a container of a group within the limits,
// as [Runtime] does.
func ContainerRuntime(r *musterv1.RuntimeStatus) *musterv1.RuntimeStatus {
	return runtime(r, nodereport.MaxContainerText)
}

func runtime(r *musterv1.RuntimeStatus, maxOutput int) *musterv1.RuntimeStatus {
	id, output := Text(r.GetId(), nodereport.MaxName), Text(r.GetHealth().GetOutput(), maxOutput)
	if id == r.GetId() && output == r.GetHealth().GetOutput() && known(r) && known(r.GetHealth()) {
		return r
	}
	bounded := &musterv1.RuntimeStatus{Id: id, Pid: r.Pid, ExitCode: r.ExitCode, OomKilled: r.OomKilled}
	if h := r.Health; h != nil {
		bounded.Health = &musterv1.Health{
			State: h.State, FailedChecks: h.FailedChecks, Retries: h.Retries, ExitCode: h.ExitCode, Output: output,
		}
	}
	return bounded
}

// known reports whether a message has no field that this version does not know, which
// has no limit.
func known(m proto.Message) bool { return len(m.ProtoReflect().GetUnknown()) == 0 }

// Ports returns ports within the limits and without unknown fields: the same ones, or
// copies.
func Ports(ports []*musterv1.PortConfig) []*musterv1.PortConfig {
	ports = ports[:min(len(ports), nodereport.MaxPorts)]
	bounded := ports
	for i, p := range ports {
		name := Text(p.GetName(), nodereport.MaxPortName)
		if name == p.GetName() && known(p) {
			continue
		}
		if &bounded[0] == &ports[0] {
			bounded = append([]*musterv1.PortConfig(nil), ports...)
		}
		bounded[i] = &musterv1.PortConfig{
			Name: name, Protocol: p.Protocol, TargetPort: p.TargetPort, PublishedPort: p.PublishedPort, PublishMode: p.PublishMode,
		}
	}
	return bounded
}
