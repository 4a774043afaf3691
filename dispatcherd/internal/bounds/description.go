package bounds

import (
	"fmt"
	"regexp"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/payload"
)

// Limits of a node's description.
const (
	// MaxDescription is the greatest size of a description in bytes.
	MaxDescription = 256 << 10
	// MaxExecutors and the following limit the entries of lists.
	MaxExecutors        = 32
	MaxKinds            = 16
	MaxCapabilities     = 256
	MaxLabels           = 256
	MaxGenericResources = 256
	// MaxText limits names, versions and the like, in bytes.
	MaxText = 256
	// MaxLabelValue limits the value of a label, in bytes.
	MaxLabelValue = 1 << 10
	// MaxMessage is the size that an executor's message is shortened to.
	MaxMessage = 1 << 10
)

// kindPattern is what the API server accepts as the kind of a runtime.
var kindPattern = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,63}$`)

// CheckDescription returns an INVALID_ARGUMENT error that names the field if a
// description exceeds a limit.
func CheckDescription(d *musterv1.NodeDescription) error {
	if d == nil {
		return status.Error(codes.InvalidArgument, "description is missing")
	}
	err := limitDescription(d)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return nil
}

func limitDescription(d *musterv1.NodeDescription) error {
	if n := proto.Size(d); n > MaxDescription {
		return fmt.Errorf("description has %d bytes, at most %d are allowed", n, MaxDescription)
	}
	if n := len(d.Executors); n > MaxExecutors {
		return fmt.Errorf("description.executors has %d entries, at most %d are allowed: a node needs one for each kind of runtime", n, MaxExecutors)
	}
	for _, text := range []struct{ name, value string }{
		{"hostname", d.Hostname}, {"machine.id", d.GetMachine().GetId()},
		{"platform.os", d.GetPlatform().GetOs()}, {"platform.architecture", d.GetPlatform().GetArchitecture()},
		{"version", d.Version},
	} {
		if len(text.value) > MaxText {
			return fmt.Errorf("description.%s has %d bytes, at most %d are allowed", text.name, len(text.value), MaxText)
		}
	}
	if err := checkLabels(d.Labels); err != nil {
		return err
	}
	if err := checkGenericResources("description.resources.generic", d.GetResources().GetGeneric()); err != nil {
		return err
	}
	if err := checkGenericResources("description.machine.shared.generic", d.GetMachine().GetShared().GetGeneric()); err != nil {
		return err
	}
	for i, e := range d.Executors {
		at := fmt.Sprintf("description.executors[%d]", i)
		for _, list := range []struct {
			name    string
			entries []string
			most    int
		}{{"kinds", e.Kinds, MaxKinds}, {"capabilities", e.Capabilities, MaxCapabilities}} {
			if n := len(list.entries); n > list.most {
				return fmt.Errorf("%s.%s has %d entries, at most %d are allowed", at, list.name, n, list.most)
			}
			for j, text := range list.entries {
				if len(text) > MaxText {
					return fmt.Errorf("%s.%s[%d] has %d bytes, at most %d are allowed", at, list.name, j, len(text), MaxText)
				}
			}
		}
		for j, kind := range e.Kinds {
			if !kindPattern.MatchString(kind) {
				return fmt.Errorf(`%s.kinds[%d] is %q: want at most 63 letters, digits, "-", "_" and "."`, at, j, Clip(kind, MaxID))
			}
		}
		for _, text := range []struct{ name, value string }{{"name", e.Name}, {"version", e.Version}, {"checksum", e.Checksum}} {
			if len(text.value) > MaxText {
				return fmt.Errorf("%s.%s has %d bytes, at most %d are allowed", at, text.name, len(text.value), MaxText)
			}
		}
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	if n := len(labels); n > MaxLabels {
		return fmt.Errorf("description.labels has %d entries, at most %d are allowed", n, MaxLabels)
	}
	for key, value := range labels {
		if len(key) > MaxText {
			return fmt.Errorf("description.labels has a key of %d bytes, at most %d are allowed", len(key), MaxText)
		}
		if len(value) > MaxLabelValue {
			return fmt.Errorf("description.labels[%q] has %d bytes, at most %d are allowed", key, len(value), MaxLabelValue)
		}
	}
	return nil
}

func checkGenericResources(at string, resources []*musterv1.GenericResource) error {
	if n := len(resources); n > MaxGenericResources {
		return fmt.Errorf("%s has %d entries, at most %d are allowed", at, n, MaxGenericResources)
	}
	for i, r := range resources {
		for _, text := range []struct{ name, value string }{{"kind", r.GetKind()}, {"named", r.GetNamed()}} {
			if len(text.value) > MaxText {
				return fmt.Errorf("%s[%d].%s has %d bytes, at most %d are allowed", at, i, text.name, len(text.value), MaxText)
			}
		}
	}
	return nil
}

// CheckSchemas sets the error of each executor whose payload schema cannot be
// used, and shortens long messages. The worker's own opinion of its schemas does
// not count. An unusable schema concerns only its node: the scheduler places no
// task there that needs it.
func CheckSchemas(d *musterv1.NodeDescription, schemas *payload.Schemas) {
	for _, e := range d.GetExecutors() {
		e.PayloadSchemaError = ""
		if e.PayloadSchema != "" {
			if err := schemas.Get(e.PayloadSchema).Err(); err != nil {
				e.PayloadSchemaError = strings.ToValidUTF8(Clip(err.Error(), MaxMessage), "")
			}
		}
		if len(e.PayloadSchema) > payload.MaxSchemaSize {
			e.PayloadSchema = ""
		}
		e.Message = strings.ToValidUTF8(Clip(e.Message, MaxMessage), "")
	}
}
