package control

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/musterhq/muster/apid/validate"
)

// maxValues is how many values a filter may have: each object, and each change that
// a watch is to tell of, is compared with all of them.
const maxValues = 1000

// checkLists refuses filters with more values than can be compared with in
// passing.
func checkLists(req proto.Message) error {
	var report validate.Report
	req.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if fd.IsList() && v.List().Len() > maxValues {
			report.Invalid(fd.JSONName(), "has %d values; at most %d are allowed", v.List().Len(), maxValues)
		}
		return true
	})
	return report.Err()
}
