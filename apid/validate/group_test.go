package validate_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// groupExecutor is an executor for containers that runs task groups, if it may.
func groupExecutor(capabilities ...string) *musterv1.ExecutorDescription {
	return &musterv1.ExecutorDescription{
		Name: "docker", Kinds: []string{"container"}, Health: musterv1.ExecutorDescription_HEALTHY, Capabilities: capabilities,
	}
}

func TestGroupsAreChecked(t *testing.T) {
	t.Parallel()
	const sidecar = `{"name":"proxy","role":"SIDECAR","container":{"image":"envoy"}}`
	for name, tt := range map[string]struct {
		group string
		code  codes.Code
		want  []string
	}{
		"good": {sidecar + `,{"name":"init","role":"INIT","container":{"image":"a"}},{"name":"end","role":"POST_STOP","timeout":"5s","container":{"image":"a"}}`, codes.OK, nil},
		"names": {
			`{"role":"INIT","container":{"image":"a"}},{"name":"main","role":"INIT","container":{"image":"a"}},{"name":"A_b","role":"INIT","container":{"image":"a"}},` + sidecar + "," + sidecar,
			codes.InvalidArgument, []string{"spec.task.group[0].name", "spec.task.group[1].name", "spec.task.group[2].name", "spec.task.group[4].name"},
		},
		"role":    {`{"name":"a","container":{"image":"a"}}`, codes.InvalidArgument, []string{"spec.task.group[0].role"}},
		"runtime": {`{"name":"a","role":"INIT"}`, codes.InvalidArgument, []string{"spec.task.group[0]"}},
		"timeout": {
			`{"name":"a","role":"INIT","timeout":"1s","container":{"image":"a"}},{"name":"b","role":"POST_STOP","timeout":"0s","container":{"image":"a"}}`,
			codes.InvalidArgument, []string{"spec.task.group[0].timeout", "spec.task.group[1].timeout"},
		},
		"image and resources": {
			`{"name":"a","role":"INIT","container":{},"resources":{"reservations":{"nanoCpus":"1"}}}`,
			codes.InvalidArgument, []string{"spec.task.group[0].container.image", "spec.task.group[0].resources.reservations.nanoCpus"},
		},
		"what the containers share": {
			`{"name":"a","role":"INIT","container":{"image":"a","hostname":"h","hosts":["1.2.3.4 b"],"dnsConfig":{"nameservers":["1.1.1.1"]}}}`,
			codes.InvalidArgument, []string{"spec.task.group[0].container.dnsConfig", "spec.task.group[0].container.hostname", "spec.task.group[0].container.hosts"},
		},
		"gaps of containers": {
			`{"name":"a","role":"INIT","container":{"image":"a","env":["A={{.Node.ID}}"],"configs":[{"configId":"c","runtime":{}}],"privileges":{"credentialSpec":{"file":"a"}}}}`,
			codes.Unimplemented, []string{"spec.task.group[0].container.configs[0].runtime", "spec.task.group[0].container.privileges.credentialSpec"},
		},
		"too many": {strings.Repeat(sidecar+",", 10) + sidecar, codes.InvalidArgument, []string{"spec.task.group"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec := parse(t, `{"name":"web","task":{"container":{"image":"nginx"},"group":[`+tt.group+`]}}`)
			code, got := fields(t, newValidator().Service(spec, catalog(groupExecutor("groups"))))
			slices.Sort(got)
			if code != tt.code || !cmp.Equal(got, tt.want) {
				t.Errorf("code %s, fields %q; want %s, %q", code, got, tt.code, tt.want)
			}
		})
	}
}

func TestGroupsNeedAnExecutorThatRunsThem(t *testing.T) {
	t.Parallel()
	spec := parse(t, `{"name":"web","task":{"container":{"image":"nginx"},"group":[{"name":"a","role":"INIT","container":{"image":"a"}}]}}`)
	err := newValidator().Service(spec, catalog(groupExecutor("logs")))
	if code, got := fields(t, err); code != codes.FailedPrecondition || !cmp.Equal(got, []string{"spec.task.group"}) {
		t.Errorf("code %s, fields %q: %v", code, got, err)
	}
	// One that can suffices, and without any the scheduler waits for one.
	for _, c := range [][]*musterv1.ExecutorDescription{{groupExecutor("logs"), groupExecutor("groups")}, nil} {
		if err := newValidator().Service(spec, catalog(c...)); err != nil {
			t.Error(err)
		}
	}
}

func TestGroupHasOneKindOfRuntime(t *testing.T) {
	t.Parallel()
	spec := parse(t, `{"name":"web","task":{"container":{"image":"nginx"},"group":[{"name":"a","role":"INIT","generic":{"kind":"null"}}]}}`)
	null := &musterv1.ExecutorDescription{Name: "null", Kinds: []string{"null"}, Health: musterv1.ExecutorDescription_HEALTHY}
	code, got := fields(t, newValidator().Service(spec, catalog(groupExecutor("groups"), null)))
	if code != codes.Unimplemented || !cmp.Equal(got, []string{"spec.task.group[0]"}) {
		t.Errorf("code %s, fields %q", code, got)
	}
}
