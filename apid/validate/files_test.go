package validate_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func TestFilesAndTemplatesAreChecked(t *testing.T) {
	t.Parallel()
	const at = "spec.task.container."
	for name, tt := range map[string]struct {
		container string
		want      []string
	}{
		"all that is right": {`"configs":[{"configName":"a"},{"configId":"b","file":{"name":"/etc/b","uid":"1","gid":"2","mode":256},"onChange":{"action":"SIGNAL","signal":"USR1"}}],
			"env":["A={{.Service.Name}}-{{.Task.Slot}}","B={{.Service.Labels.tier}}"],"hostname":"{{.Node.Hostname}}","dir":"/{{.Task.ID}}","user":"{{.Service.Labels.tier}}",
			"mounts":[{"type":"VOLUME","source":"v-{{.Task.Slot}}","target":"/v/{{.Node.ID}}","volumeOptions":{"labels":{"a":"{{.Task.Name}}"}}}]`, nil},
		"no config":                 {`"configs":[{}]`, []string{at + "configs[0].configName"}},
		"a path that leaves":        {`"configs":[{"configName":"a","file":{"name":"../a"}}]`, []string{at + "configs[0].file.name"}},
		"a directory":               {`"configs":[{"configName":"a","file":{"name":"/etc/"}}]`, []string{at + "configs[0].file.name"}},
		"owner and mode":            {`"configs":[{"configName":"a","file":{"name":"a","uid":"root","gid":"-1","mode":4096}}]`, []string{at + "configs[0].file.gid", at + "configs[0].file.mode", at + "configs[0].file.uid"}},
		"one target twice":          {`"configs":[{"configName":"a"},{"configName":"b","file":{"name":"/a"}}]`, []string{at + "configs[1].file.name"}},
		"a target below a file":     {`"configs":[{"configName":"a"},{"configName":"b","file":{"name":"/a/b"}}]`, []string{at + "configs[1].file.name"}},
		"the target of a mount":     {`"configs":[{"configName":"a"}],"mounts":[{"type":"TMPFS","target":"/a"}]`, []string{at + "configs[0].file.name"}},
		"a signal for nothing":      {`"configs":[{"configName":"a","onChange":{"action":"RESTART","signal":"HUP"}}]`, []string{at + "configs[0].onChange.signal"}},
		"no signal":                 {`"configs":[{"configName":"a","onChange":{"action":"SIGNAL","signal":"a b"}}]`, []string{at + "configs[0].onChange.signal"}},
		"no template":               {`"env":["A={{"]`, []string{at + "env[0]"}},
		"a field that is not there": {`"hostname":"{{.Service.Nam}}"`, []string{at + "hostname"}},
		"a label that is not there": {`"user":"{{.Service.Labels.gone}}"`, []string{at + "user"}},
		"a loop without end":        {`"dir":"{{range 1000000000}}{{end}}"`, []string{at + "dir"}},
		"a secret in a field":       {`"env":["A={{secret \"a\"}}"]`, []string{at + "env[0]"}},
		"mounts":                    {`"mounts":[{"type":"VOLUME","source":"{{.X}}","target":"/v"}]`, []string{at + "mounts[0].source"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec := parse(t, `{"name":"web","labels":{"tier":"front"},"task":{"container":{"image":"nginx",`+tt.container+`}}}`)
			code, got := fields(t, newValidator().Service(spec, catalog()))
			slices.Sort(got)
			want := codes.InvalidArgument
			if tt.want == nil {
				want = codes.OK
			}
			if code != want || !cmp.Equal(got, tt.want) {
				t.Errorf("code %s, fields %q; want %q", code, got, tt.want)
			}
		})
	}
}

func TestResourceReferencesAreChecked(t *testing.T) {
	t.Parallel()
	spec := parse(t, `{"name":"web","task":{"container":{"image":"nginx"},"resourceReferences":[{"type":"CONFIG"},{"id":"a"},{"type":"SECRET","id":"b"},{"type":"SECRET","id":"b","file":{"name":"/x"}}]}}`)
	code, got := fields(t, newValidator().Service(spec, catalog()))
	want := []string{"spec.task.resourceReferences[0].id", "spec.task.resourceReferences[1].type"}
	if code != codes.InvalidArgument || !cmp.Equal(got, want) {
		t.Errorf("code %s, fields %s; want %s", code, strings.Join(got, " "), want)
	}
}

func TestTemplatingOfConfigsIsChecked(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		`{"name":"a","data":"e3sgc2VjcmV0ICJhIiB9fQ==","templating":{"name":"golang"}}`: nil,
		`{"name":"a","data":"e3s=","templating":{"name":"golang"}}`:                     {"spec.templating"},
		`{"name":"a","data":"e3s=","templating":{"name":"jinja"}}`:                      {"spec.templating.name"},
		`{"name":"a","data":"e3s="}`:                                                    nil,
	} {
		_, got := fields(t, newValidator().Config(parseConfig(t, text), true))
		if !cmp.Equal(got, want) {
			t.Errorf("%s: fields %q, want %q", text, got, want)
		}
	}
}

func parseConfig(t *testing.T, text string) *musterv1.ConfigSpec {
	t.Helper()
	s := &musterv1.ConfigSpec{}
	if err := protojson.Unmarshal([]byte(text), s); err != nil {
		t.Fatal(err)
	}
	return s
}
