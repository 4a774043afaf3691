package schedulerd_test

import (
	"testing"
	"testing/synctest"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/store"
)

// TestTasksAvoidNodesThatRefuseTheirPayload has nodes whose executors publish different
// schemas: tasks run where theirs is accepted, and the reason names the others.
func TestTasksAvoidNodesThatRefuseTheirPayload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		c.schedule("s1")
		offer := func(id string, cores int64, schema, schemaError string) {
			c.update(func(tx *store.Tx) {
				c.tables.NodeStates.Put(tx, id, &recordv1.NodeState{
					State: musterv1.NodeStatus_READY,
					Description: &musterv1.NodeDescription{
						Resources: &musterv1.Resources{NanoCpus: cores * 1e9, MemoryBytes: 1 << 40},
						Executors: []*musterv1.ExecutorDescription{{
							Health: musterv1.ExecutorDescription_HEALTHY, Kinds: []string{"null"}, PayloadSchema: schema, PayloadSchemaError: schemaError,
						}},
					},
				})
			})
		}
		offer("refuses", 8, `{"required":["command"]}`, "")
		offer("no-schema", 8, `{"type":7}`, "")
		offer("at-fault", 8, `{"not":{}}`, "refuses every payload")
		offer("accepts", 2, `{"type":"object"}`, "")
		c.service("web", 3, 0)
		c.expect("one node accepts the payload", map[string]int{"accepts": 2})
		want := `no suitable node (executor for "null" does not accept the payload on 3 nodes; insufficient CPU on 1 node: want 1, none free)`
		if got := c.reason("web"); got != want {
			t.Errorf("reason = %q, want %q", got, want)
		}
		offer("refuses", 8, `{"required":["command"],"not":{},"title":"newer"}`, "")
		c.expect("another schema that refuses", map[string]int{"accepts": 2})
		offer("refuses", 8, `{"title":"newest"}`, "")
		c.expect("the schema was mended", map[string]int{"accepts": 2, "refuses": 1})
	})
}
