package validate_test

import (
	"slices"
	"testing"

	"google.golang.org/grpc/codes"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// TestMountMistakesNameTheirFields has one mistake per mount, and names the field of it.
func TestMountMistakesNameTheirFields(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ field, mount string }{
		{"type", `{"target": "/b"}`},
		{"target", `{"type": "VOLUME", "target": "b"}`},
		{"source", `{"type": "VOLUME", "source": "/srv", "target": "/b"}`},
		{"source", `{"type": "VOLUME", "source": "a/b", "target": "/b"}`},
		{"source", `{"type": "BIND", "source": "data", "target": "/b"}`},
		{"source", `{"type": "TMPFS", "source": "data", "target": "/b"}`},
		{"consistency", `{"type": "VOLUME", "target": "/b", "consistency": "good"}`},
		{"bindOptions", `{"type": "VOLUME", "target": "/b", "bindOptions": {}}`},
		{"volumeOptions", `{"type": "TMPFS", "target": "/b", "volumeOptions": {}}`},
		{"tmpfsOptions", `{"type": "VOLUME", "target": "/b", "tmpfsOptions": {}}`},
		{"bindOptions.propagation", `{"type": "BIND", "source": "/a", "target": "/b", "bindOptions": {"propagation": "none"}}`},
		{"bindOptions.propagation", `{"type": "BIND", "source": "/a", "target": "/b", "readOnly": true, "bindOptions": {"propagation": "shared", "readOnlyForceRecursive": true}}`},
		{"bindOptions.readOnlyNonRecursive", `{"type": "BIND", "source": "/a", "target": "/b", "bindOptions": {"readOnlyNonRecursive": true}}`},
		{"bindOptions.readOnlyForceRecursive", `{"type": "BIND", "source": "/a", "target": "/b", "readOnly": true, "bindOptions": {"readOnlyForceRecursive": true, "nonRecursive": true}}`},
		{"bindOptions.readOnlyForceRecursive", `{"type": "BIND", "source": "/a", "target": "/b", "readOnly": true, "bindOptions": {"readOnlyForceRecursive": true, "readOnlyNonRecursive": true}}`},
		{"volumeOptions.subpath", `{"type": "VOLUME", "source": "data", "target": "/b", "volumeOptions": {"subpath": "a/../../b"}}`},
		{"volumeOptions.subpath", `{"type": "VOLUME", "target": "/b", "volumeOptions": {"subpath": "a"}}`},
		{`volumeOptions.labels["com.musterhq.id"]`, `{"type": "VOLUME", "source": "data", "target": "/b", "volumeOptions": {"labels": {"com.musterhq.id": "a"}}}`},
		{"volumeOptions.driverConfig.options", `{"type": "VOLUME", "source": "data", "target": "/b", "volumeOptions": {"driverConfig": {"options": {"": "a"}}}}`},
		{"tmpfsOptions.sizeBytes", `{"type": "TMPFS", "target": "/b", "tmpfsOptions": {"sizeBytes": -1}}`},
		{"tmpfsOptions.mode", `{"type": "TMPFS", "target": "/b", "tmpfsOptions": {"mode": 4096}}`},
	} {
		spec := parse(t, `{"name": "web", "task": {"container": {"image": "nginx", "mounts": [`+c.mount+`]}}}`)
		code, got := fields(t, newValidator().Service(spec, catalog()))
		want := "spec.task.container.mounts[0]." + c.field
		if code != codes.InvalidArgument || !slices.Equal(got, []string{want}) {
			t.Errorf("%s: %v %q, want %q", c.mount, code, got, want)
		}
	}
}

func TestMountsOfOtherPlatformsAreRefusedWithTheirField(t *testing.T) {
	t.Parallel()
	for _, kind := range []musterv1.Mount_Type{musterv1.Mount_NPIPE, musterv1.Mount_CLUSTER} {
		spec := container(func(_ *musterv1.ServiceSpec, c *musterv1.ContainerSpec) {
			c.Mounts = []*musterv1.Mount{{Type: kind, Source: `\\.\pipe\x`, Target: `c:\x`}}
		})
		code, got := fields(t, newValidator().Service(spec, catalog()))
		if code != codes.Unimplemented || !slices.Equal(got, []string{"spec.task.container.mounts[0].type"}) {
			t.Errorf("%s: %v %q", kind, code, got)
		}
	}
}

func TestMountsWithEveryOptionAreAccepted(t *testing.T) {
	t.Parallel()
	spec := parse(t, `{"name": "web", "task": {"container": {"image": "nginx", "mounts": [
		{"type": "BIND", "source": "/a/{{.Task.Slot}}", "target": "/a", "readOnly": true, "consistency": "cached", "bindOptions": {"propagation": "rprivate", "createMountpoint": true, "readOnlyForceRecursive": true}},
		{"type": "BIND", "source": "/a", "target": "/a2", "readOnly": true, "bindOptions": {"propagation": "rshared", "readOnlyNonRecursive": true}},
		{"type": "BIND", "source": "/a", "target": "/a3", "bindOptions": {"nonRecursive": true}},
		{"type": "VOLUME", "source": "data-{{.Task.Slot}}", "target": "/b", "volumeOptions": {"noCopy": true, "labels": {"a": "{{.Service.Name}}"}, "subpath": "x/y",
			"driverConfig": {"name": "local", "options": {"device": "/srv/{{.Node.Hostname}}"}}}},
		{"type": "VOLUME", "source": "bucket/folder", "target": "/b2", "volumeOptions": {"driverConfig": {"name": "s3"}}},
		{"type": "VOLUME", "target": "/b3"},
		{"type": "TMPFS", "target": "/c", "tmpfsOptions": {"sizeBytes": 1024, "mode": 1023, "options": "exec"}}]}}}`)
	if err := newValidator().Service(spec, catalog()); err != nil {
		t.Error(err)
	}
}
