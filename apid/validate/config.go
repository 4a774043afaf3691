package validate

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

const (
	// MaxDataName is the greatest length of the name of a config or secret.
	MaxDataName = 64
	// MaxConfig is the greatest length of a config's data.
	MaxConfig = 1000 << 10
	// MaxSecret is the greatest length of a secret's data.
	MaxSecret = 500 << 10
)

// Config checks the spec of a config: of a new one, or one that replaces another, whose
// name and data may be left out.
func (v *Validator) Config(spec *musterv1.ConfigSpec, fresh bool) error {
	return v.config(spec, fresh).Err()
}

func (v *Validator) config(spec *musterv1.ConfigSpec, fresh bool) *Report {
	r := &Report{}
	if spec == nil {
		r.Invalid("spec", "is required")
		return r
	}
	v.checkNamedData(r, spec, fresh, MaxConfig)
	return r
}

// Secret checks the spec of a secret in the same way.
func (v *Validator) Secret(spec *musterv1.SecretSpec, fresh bool) error {
	return v.secret(spec, fresh).Err()
}

func (v *Validator) secret(spec *musterv1.SecretSpec, fresh bool) *Report {
	r := &Report{}
	if spec == nil {
		r.Invalid("spec", "is required")
		return r
	}
	v.checkNamedData(r, spec, fresh, MaxSecret)
	if spec.Driver != nil {
		r.Unimplemented("spec.driver", "drivers for secrets are not implemented yet")
	}
	return r
}

// Data checks the new data of a config or secret.
func Data(data []byte, most int) error {
	var r Report
	checkData(&r, "data", data, most)
	return r.Err()
}

// Template checks the new data of a config or secret that may be a template.
func Template(field string, driver *musterv1.Driver, data []byte) error {
	var r Report
	Templating(&r, field, driver, data)
	return r.Err()
}

func checkData(r *Report, field string, data []byte, most int) {
	switch {
	case len(data) == 0:
		r.Invalid(field, "is required: 1 byte to %d KiB", most>>10)
	case len(data) > most:
		r.Invalid(field, "has %d bytes; at most %d KiB are allowed", len(data), most>>10)
	}
}

// namedData is the spec of a config or a secret.
type namedData interface {
	proto.Message
	GetName() string
	GetLabels() map[string]string
	GetData() []byte
	GetTemplating() *musterv1.Driver
}

func (v *Validator) checkNamedData(r *Report, spec namedData, fresh bool, most int) {
	walk(spec.ProtoReflect(), "spec", "", func(path, _ string, fd protoreflect.FieldDescriptor, value protoreflect.Value) {
		wellFormed(r, path, fd, value)
	})
	checkLabels(r, "spec.labels", spec.GetLabels())
	switch name := spec.GetName(); {
	case name == "":
		if fresh {
			r.Invalid("spec.name", "is required")
		}
	case len(name) > MaxDataName:
		r.Invalid("spec.name", "has %d characters; at most %d are allowed", len(name), MaxDataName)
	case !v.pattern.dataName.MatchString(name):
		r.Invalid("spec.name", `must consist of letters, digits, "-", "_" and ".", and begin and end with a letter or digit`)
	}
	if fresh || len(spec.GetData()) > 0 {
		checkData(r, "spec.data", spec.GetData(), most)
	}
	Templating(r, "spec.templating", spec.GetTemplating(), spec.GetData())
}
