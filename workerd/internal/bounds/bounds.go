// Package bounds limits what an executor says of a task or of itself, before the
// worker stores or reports it. A report that is too large for a dispatcher would
// end each session that it is sent in.
//
// The limits of a task's status are those of the dispatcher.
package bounds

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Limits in bytes, but for MaxPorts.
const (
	// MaxText limits messages and errors.
	MaxText = 4 << 10
	// MaxHealthOutput limits the output of a health check.
	MaxHealthOutput = 1 << 10
	// MaxDescription limits the message in which an executor describes itself.
	MaxDescription = 1 << 10
	// MaxName limits names, versions and the executor's own name of a task.
	MaxName = 256
	// MaxPorts limits the number of ports of a task, and MaxPortName their names.
	MaxPorts    = 256
	MaxPortName = 64
	// MaxSchema limits the schema of payloads. It is payload.MaxSchemaSize, whose package
	// needs a library that a worker does not.
	MaxSchema = 64 << 10
	// MaxLogLine limits a line of output. The executor contract promises no longer one.
	MaxLogLine = 16 << 10
)

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
	id, output := Text(r.GetId(), MaxName), Text(r.GetHealth().GetOutput(), MaxHealthOutput)
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
	ports = ports[:min(len(ports), MaxPorts)]
	bounded := ports
	for i, p := range ports {
		name := Text(p.GetName(), MaxPortName)
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
