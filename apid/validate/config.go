package validate

import (
	"google.golang.org/protobuf/reflect/protoreflect"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

const (
	// MaxDataName is the greatest length of the name of a config.
	MaxDataName = 64
	// MaxConfig is the greatest length of a config's data.
	MaxConfig = 1000 << 10
)

// Config checks the spec of a config: of a new one, or one that replaces another, whose
// name and data may be left out.
func (v *Validator) Config(spec *musterv1.ConfigSpec, fresh bool) error {
	var r Report
	if spec == nil {
		r.Invalid("spec", "is required")
		return r.Err()
	}
	walk(spec.ProtoReflect(), "spec", "", func(path, _ string, fd protoreflect.FieldDescriptor, value protoreflect.Value) {
		wellFormed(&r, path, fd, value)
	})
	checkLabels(&r, "spec.labels", spec.Labels)
	switch {
	case spec.Name == "":
		if fresh {
			r.Invalid("spec.name", "is required")
		}
	case len(spec.Name) > MaxDataName:
		r.Invalid("spec.name", "has %d characters; at most %d are allowed", len(spec.Name), MaxDataName)
	case !v.pattern.dataName.MatchString(spec.Name):
		r.Invalid("spec.name", `must consist of letters, digits, "-", "_" and ".", and begin and end with a letter or digit`)
	}
	switch {
	case len(spec.Data) == 0 && fresh:
		r.Invalid("spec.data", "is required: 1 byte to %d KiB", MaxConfig>>10)
	case len(spec.Data) > MaxConfig:
		r.Invalid("spec.data", "has %d bytes; at most %d KiB are allowed", len(spec.Data), MaxConfig>>10)
	}
	Templating(&r, "spec.templating", spec.Templating, spec.Data)
	return r.Err()
}
