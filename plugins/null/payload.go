package null

import (
	"errors"
	"slices"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/schema"
)

// Payload is a null task's script. With the zero payload a task is prepared and started at
// once, and runs until it is stopped.
type Payload struct {
	PrepareDelay    sdk.Duration  `json:"prepareDelay,omitzero" jsonschema:"how long Prepare takes"`
	StartDelay      sdk.Duration  `json:"startDelay,omitzero" jsonschema:"how long Start takes"`
	RunFor          *sdk.Duration `json:"runFor,omitempty" jsonschema:"how long the task runs; absent: until it is told to stop"`
	ExitCode        int32         `json:"exitCode,omitempty" jsonschema:"the exit code after runFor"`
	FailPrepare     string        `json:"failPrepare,omitempty" jsonschema:"the error that Prepare fails with"`
	FailStart       string        `json:"failStart,omitempty" jsonschema:"the error that Start fails with"`
	FailTimes       uint32        `json:"failTimes,omitempty" jsonschema:"how often the call fails before it succeeds; absent: always"`
	Temporary       bool          `json:"temporary,omitempty" jsonschema:"whether the failure is temporary"`
	RetryAfter      sdk.Duration  `json:"retryAfter,omitzero" jsonschema:"when to try again after a temporary failure"`
	Blame           string        `json:"blame,omitempty" jsonschema:"whom a failure blames: node or spec"`
	Unhealthy       bool          `json:"unhealthy,omitempty" jsonschema:"whether the task ends as unhealthy after runFor"`
	IgnoreShutdown  bool          `json:"ignoreShutdown,omitempty" jsonschema:"whether only the end of the grace period ends the task"`
	StopGracePeriod *sdk.Duration `json:"stopGracePeriod,omitempty" jsonschema:"the grace period of a shutdown; absent: 10s"`
	AcceptNetwork   bool          `json:"acceptNetwork,omitempty" jsonschema:"whether a networked task takes the namespace that Start names, instead of one that Prepare makes"`
	ExitPluginAt    string        `json:"exitPluginAt,omitempty" jsonschema:"the call at which the executor's process ends, once"`
	HangAt          string        `json:"hangAt,omitempty" jsonschema:"the call that does not return until it is cancelled"`
}

// The calls that a payload can name.
const (
	callPrepare   = "prepare"
	callStart     = "start"
	callWait      = "wait"
	callShutdown  = "shutdown"
	callTerminate = "terminate"
	callRemove    = "remove"
)

const (
	blameNode = "node"
	blameSpec = "spec"
)

func calls() []any {
	return []any{callPrepare, callStart, callWait, callShutdown, callTerminate, callRemove}
}

func payloadSchema() string {
	return schema.Of[Payload](func(s *jsonschema.Schema) {
		s.Properties["exitPluginAt"].Enum = calls()
		s.Properties["hangAt"].Enum = calls()
		s.Properties["blame"].Enum = []any{blameNode, blameSpec}
	})
}

// decode reads a task's script. A task of another runtime, which this executor can be
// configured to run, has none.
func decode(task *sdk.Task) (Payload, error) {
	if len(task.GetSpec().GetGeneric().GetPayload().GetFields()) == 0 {
		return Payload{}, nil
	}
	payload, err := sdk.Decode[Payload](task)
	if err != nil {
		return Payload{}, err
	}
	for field, value := range map[string]string{"exitPluginAt": payload.ExitPluginAt, "hangAt": payload.HangAt} {
		if value != "" && !slices.Contains(calls(), any(value)) {
			return Payload{}, sdk.SpecFault(field, errors.New("it is not the name of a call"))
		}
	}
	if payload.Blame != "" && payload.Blame != blameNode && payload.Blame != blameSpec {
		return Payload{}, sdk.SpecFault("blame", errors.New(`it must be "node" or "spec"`))
	}
	return payload, nil
}

// failure returns the error that the script asks for.
func (p Payload) failure(text string) error {
	err := errors.New(text)
	switch {
	case p.Temporary:
		return sdk.Temporary(err, time.Duration(p.RetryAfter))
	case p.Blame == blameNode:
		return sdk.NodeFault(err)
	case p.Blame == blameSpec:
		return sdk.SpecFault("", err)
	default:
		return sdk.Failed(err)
	}
}

// grace returns how long a shutdown waits.
func (p Payload) grace(asked *time.Duration) time.Duration {
	switch {
	case asked != nil:
		return *asked
	case p.StopGracePeriod != nil:
		return time.Duration(*p.StopGracePeriod)
	default:
		return sdk.DefaultGracePeriod
	}
}
