package specdiff_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/specdiff"
)

func spec(t *testing.T, text string) *musterv1.ServiceSpec {
	t.Helper()
	s := new(musterv1.ServiceSpec)
	if err := protojson.Unmarshal([]byte(text), s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestKept(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, after, next string
		want                []string
	}{
		"nothing changed": {`{"name":"a"}`, `{"name":"a"}`, `{"name":"b"}`, nil},
		"an unrelated field differs": {
			`{"task":{"container":{"image":"1"}}}`, `{"task":{"container":{"image":"2"}}}`, `{"task":{"container":{"image":"2","env":["A=1"]}}}`,
			[]string{"task.container.image"},
		},
		"the changed field differs": {
			`{"task":{"container":{"image":"1"}}}`, `{"task":{"container":{"image":"2"}}}`, `{"task":{"container":{"image":"3"}}}`, nil,
		},
		"the change is taken back": {
			`{"task":{"container":{"image":"1"}}}`, `{"task":{"container":{"image":"2"}}}`, `{"task":{"container":{"image":"1","env":["A=1"]}}}`, nil,
		},
		"one of two changes differs": {
			`{"task":{"container":{"image":"1","user":"a"}}}`, `{"task":{"container":{"image":"2","user":"b"}}}`,
			`{"task":{"container":{"image":"2","user":"c"}}}`, nil,
		},
		"a list grows by another element": {
			`{"task":{"container":{"env":["A=1"]}}}`, `{"task":{"container":{"env":["A=1","B=2"]}}}`, `{"task":{"container":{"env":["A=1","B=2","C=3"]}}}`,
			[]string{"task.container.env"},
		},
		"an added element goes": {
			`{"task":{"container":{"env":["A=1"]}}}`, `{"task":{"container":{"env":["A=1","B=2"]}}}`, `{"task":{"container":{"env":["A=1","C=3"]}}}`, nil,
		},
		"a removed element comes back": {
			`{"task":{"container":{"env":["A=1","B=2"]}}}`, `{"task":{"container":{"env":["A=1"]}}}`, `{"task":{"container":{"env":["A=1","B=2"]}}}`, nil,
		},
		"only the order changed, and stays": {
			`{"task":{"container":{"args":["a","b"]}}}`, `{"task":{"container":{"args":["b","a"]}}}`, `{"task":{"container":{"args":["b","a"],"user":"x"}}}`,
			[]string{"task.container.args"},
		},
		"only the order changed, and changes again": {
			`{"task":{"container":{"args":["a","b"]}}}`, `{"task":{"container":{"args":["b","a"]}}}`, `{"task":{"container":{"args":["a","b"]}}}`, nil,
		},
		"another key of a map": {
			`{"task":{"container":{"labels":{"a":"1"}}}}`, `{"task":{"container":{"labels":{"a":"2"}}}}`, `{"task":{"container":{"labels":{"a":"2","b":"1"}}}}`,
			[]string{"task.container.labels"},
		},
		"the changed key of a map": {
			`{"task":{"container":{"labels":{"a":"1"}}}}`, `{"task":{"container":{"labels":{"a":"2"}}}}`, `{"task":{"container":{"labels":{"a":"3"}}}}`, nil,
		},
		"another key of a payload": {
			`{"task":{"generic":{"kind":"a","payload":{"x":1}}}}`, `{"task":{"generic":{"kind":"a","payload":{"x":{"y":2}}}}}`,
			`{"task":{"generic":{"kind":"a","payload":{"x":{"y":2},"z":3}}}}`, []string{"task.generic.payload"},
		},
		"the changed key of a payload": {
			`{"task":{"generic":{"kind":"a","payload":{"x":1}}}}`, `{"task":{"generic":{"kind":"a","payload":{"x":2}}}}`,
			`{"task":{"generic":{"kind":"a","payload":{"x":3}}}}`, nil,
		},
		"another kind of runtime": {
			`{"task":{"container":{"image":"1"}}}`, `{"task":{"generic":{"kind":"process"}}}`, `{"task":{"generic":{"kind":"process","payload":{"a":1}}}}`, nil,
		},
		"a part that appeared, and stays": {
			`{"task":{"container":{"image":"1"}}}`, `{"task":{"container":{"image":"1"}},"endpoint":{"mode":"DNSRR"}}`,
			`{"task":{"container":{"image":"2"}},"endpoint":{"mode":"DNSRR"}}`, []string{"endpoint"},
		},
		"a part is gone in the next": {
			`{"task":{"container":{"image":"1"}}}`, `{"task":{"container":{"image":"2"}}}`, `{}`, nil,
		},
	} {
		got := specdiff.Kept(spec(t, c.before), spec(t, c.after), spec(t, c.next))
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
