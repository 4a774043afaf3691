package docs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// TestEveryFieldOfASpecIsDocumented looks for each field of a service's spec, of
// its task and of its containers in the page about services.
func TestEveryFieldOfASpecIsDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs", "services.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []protoreflect.ProtoMessage{
		&musterv1.ServiceSpec{}, &musterv1.ReplicatedService{}, &musterv1.UpdateConfig{}, &musterv1.EndpointSpec{}, &musterv1.PortConfig{},
		&musterv1.TaskSpec{}, &musterv1.GenericRuntime{}, &musterv1.Resources{}, &musterv1.Limits{}, &musterv1.ResourceRequirements{},
		&musterv1.RestartPolicy{}, &musterv1.Placement{}, &musterv1.Platform{}, &musterv1.LogDriver{}, &musterv1.ContainerSpec{},
		&musterv1.PullOptions{}, &musterv1.Mount{}, &musterv1.DNSConfig{}, &musterv1.HealthConfig{}, &musterv1.Ulimit{},
	} {
		md := m.ProtoReflect().Descriptor()
		for i := range md.Fields().Len() {
			name := md.Fields().Get(i).JSONName()
			if !mentions(string(text), name) {
				t.Errorf("docs/services.md says nothing of the field %s of a %s", name, md.Name())
			}
		}
	}
}

// mentions reports whether a text names a field, as code or in an example.
func mentions(text, name string) bool {
	for _, form := range []string{"`" + name + "`", "." + name + "`", "`" + name + ".", name + ":"} {
		if strings.Contains(text, form) {
			return true
		}
	}
	return false
}
