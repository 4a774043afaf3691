package apid_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// dockerNode adds a node whose executor acts on a few fields of containers.
func (c *cluster) dockerNode() {
	c.node("n1", "host1", &musterv1.ExecutorDescription{
		Name: "docker", Health: musterv1.ExecutorDescription_HEALTHY, Kinds: []string{"container"},
		Capabilities: []string{"container.image", "container.env", "container.pullOptions", "container.stopGracePeriod"},
	})
}

// What is read with defaults must be accepted when it is written back.
func TestSpecReadWithDefaultsCanBeWrittenBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.dockerNode()
		a := c.apid()
		for i, body := range []string{
			`{"task":{"container":{"image":"nginx"}}}`,
			`{"task":{"container":{"image":"nginx"}},"global":{},"endpoint":{"ports":[{"targetPort":80,"publishMode":"HOST"}]}}`,
			`{"task":{"container":{"image":"nginx"},"restart":{"condition":"NONE"}},"update":{"order":"START_FIRST"},"rollback":{"failureAction":"CONTINUE"}}`,
		} {
			spec := &musterv1.ServiceSpec{}
			if err := protojson.Unmarshal([]byte(body), spec); err != nil {
				t.Fatal(err)
			}
			spec.Name = fmt.Sprintf("web%d", i)
			a.create(spec)
			read := a.rest(http.MethodGet, "/v1/services/"+spec.Name+"?insertDefaults=true", "")
			service := &musterv1.Service{}
			if err := protojson.Unmarshal([]byte(read.body), service); err != nil {
				t.Fatal(err)
			}
			back, err := protojson.Marshal(service.Spec)
			if err != nil {
				t.Fatal(err)
			}
			written := a.rest(http.MethodPut, fmt.Sprintf("/v1/services/%s?version=%d", spec.Name, service.Meta.Version), string(back))
			if written.code != http.StatusOK {
				t.Errorf("%s: writing back what was read: %d %s", body, written.code, written.body)
			}
		}
	})
}

func TestRefusedValues(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.dockerNode()
		a := c.apid()
		const image = `"task":{"container":{"image":"nginx"}}`
		constraint := func(c string) string {
			return `{"task":{"container":{"image":"nginx"},"placement":{"constraints":["` + c + `"]}}}`
		}
		for name, tt := range map[string]struct {
			body  string
			code  int
			field string
		}{
			"a rollback that is rolled back": {`{` + image + `,"rollback":{"failureAction":"ROLLBACK"}}`, 400, "spec.rollback.failureAction"},
			"an update that is rolled back":  {`{` + image + `,"update":{"failureAction":"ROLLBACK"}}`, 200, ""},
			"a glob":                         {constraint("node.hostname==web*"), 501, "spec.task.placement.constraints[0]"},
			"a negated glob":                 {constraint("node.labels.zone != *-old"), 501, "spec.task.placement.constraints[0]"},
			"a regular expression":           {constraint("node.labels.zone==/eu-.+/"), 501, "spec.task.placement.constraints[0]"},
			"a path":                         {constraint("node.labels.path==/srv/data"), 200, ""},
			"the default isolation":          {`{"task":{"container":{"image":"nginx","isolation":"default"}}}`, 200, ""},
			"another isolation":              {`{"task":{"container":{"image":"nginx","isolation":"hyperv"}}}`, 400, "spec.task.container.isolation"},
		} {
			got := a.rest(http.MethodPost, "/v1/services", tt.body)
			if got.code != tt.code || strings.Join(got.fields(), ",") != tt.field {
				t.Errorf("%s: %d naming %q, want %d naming %q\n%s", name, got.code, got.fields(), tt.code, tt.field, got.body)
			}
		}
	})
}

func TestTasksOfRemovedServicesKeepTheirName(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		first := c.apid()
		s := first.create(webSpec("web"))
		id := c.task(s, 1, nil)
		name := func(a *api) (service, task string) {
			t.Helper()
			resp, err := a.GetTask(t.Context(), &musterv1.GetTaskRequest{Task: id})
			if err != nil {
				t.Fatal(err)
			}
			return resp.Task.ServiceName, resp.Task.Name
		}
		if _, err := first.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: "web"}); err != nil {
			t.Fatal(err)
		}
		// Another replica, which was not there when it happened, knows it too; and the
		// name can be taken again.
		second := c.apid()
		again := second.create(webSpec("web"))
		for _, a := range []*api{first, second} {
			if service, task := name(a); service != "web" || task != "web.1."+id {
				t.Errorf("the task of a removed service is called %q of %q", task, service)
			}
		}
		key := state.RemovedNameKey(s.Id)
		remembered := func() bool {
			_, ok := c.tables.Names.Get(c.store.Snapshot(), key)
			return ok
		}
		time.Sleep(10 * time.Minute)
		settled(t, "the name is kept while there is a task", remembered)
		c.update(func(tx *store.Tx) { c.tables.Tasks.Delete(tx, state.TaskKey(s.Id, 1, "", id)) })
		eventually(t, "the name is forgotten", func() bool { return !remembered() })
		if got := second.get("web"); got.Id != again.Id {
			t.Errorf("web is %s, want %s", got.Id, again.Id)
		}
		_, err := second.GetService(t.Context(), &musterv1.GetServiceRequest{Service: s.Id})
		wantCode(t, err, codes.NotFound)
	})
}
