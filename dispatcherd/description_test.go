package dispatcherd

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/nodereport"
)

// The time after which a worker may be described, or begin a session, once more.
const (
	describeEvery = 2 * time.Second
	sessionEvery  = 2 * time.Second
)

// commits is how many commits have written to the shard of a node's record.
func (c *cluster) commits(node string) uint64 {
	synctest.Wait()
	e, _ := c.tables.NodeStates.Get(c.store.Snapshot(), node)
	return e.Version
}

func (w *worker) describe(d *musterv1.NodeDescription) {
	w.say(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Description{Description: d}})
}

// TestDescriptionsArePacedAndTheLastIsWritten floods a dispatcher with descriptions for
// five seconds.
func TestDescriptionsArePacedAndTheLastIsWritten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, true)
		d := c.dispatcher("d1")
		synctest.Wait()
		w := c.worker("n1", d.address)
		c.wantNode("n1", ready)
		before := c.commits("n1")
		last := ""
		for i := range 500 {
			last = fmt.Sprintf("host-%d", i)
			w.describe(&musterv1.NodeDescription{Hostname: last})
			time.Sleep(10 * time.Millisecond)
		}
		if n := c.commits("n1") - before; n > 8 {
			t.Errorf("500 descriptions in 5 s cost %d commits, want at most 8", n)
		}
		w.live(describeEvery)
		synctest.Wait()
		if got := c.nodeState("n1").GetDescription().GetHostname(); got != last {
			t.Errorf("the record says %q, want the last description, %q", got, last)
		}
		// One that comes alone is not kept waiting.
		w.live(time.Minute)
		w.describe(&musterv1.NodeDescription{Hostname: "alone"})
		synctest.Wait()
		if got := c.nodeState("n1").GetDescription().GetHostname(); got != "alone" {
			t.Errorf("the record says %q at once, want %q", got, "alone")
		}
		// Nor is the end of a worker that still has something to say.
		for i := range 20 {
			w.describe(&musterv1.NodeDescription{Hostname: fmt.Sprintf("again-%d", i)})
		}
		synctest.Wait() // all are taken in
		w.hangUp()
		c.wantNode("n1", away)
		time.Sleep(4 * time.Second)
		c.wantNode("n1", fallen)
		if got := c.nodeState("n1").GetDescription().GetHostname(); got != "again-19" {
			t.Errorf("the record says %q, want %q", got, "again-19")
		}
	})
}

// TestSessionsOfANodeArePaced opens sessions of a node one after another, with another
// description each.
func TestSessionsOfANodeArePaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, true)
		d := c.dispatcher("d1")
		synctest.Wait()
		c.worker("n1", d.address)
		c.wantNode("n1", ready)
		before, refused := c.commits("n1"), 0
		for i := range 250 {
			w := c.newWorker("n1", c.dial(d.address))
			w.hello(&dispatcherv1.Hello{NodeId: "n1", InstanceId: "1", Description: &musterv1.NodeDescription{Hostname: fmt.Sprint(i)}})
			if code := status.Code(w.ended()); code == codes.Unavailable {
				refused++
			}
			w.hangUp()
			time.Sleep(20 * time.Millisecond)
		}
		if n := c.commits("n1") - before; n > 40 {
			t.Errorf("250 sessions in 5 s cost %d commits, want at most 40", n)
		}
		if refused < 200 {
			t.Errorf("%d of 250 sessions are refused with UNAVAILABLE, want 200 and more", refused)
		}
		// A worker that was refused comes back before its node is down.
		time.Sleep(sessionEvery)
		c.worker("n1", d.address)
		c.wantNode("n1", ready)
	})
}

// TestSchemasAtFaultAreReportedOnTheirNode holds that a worker joins with whatever
// schemas, and that its record says what is wrong with them.
func TestSchemasAtFaultAreReportedOnTheirNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, true)
		d := c.dispatcher("d1")
		synctest.Wait()
		schemas := []string{``, `{"type":"object"}`, `{"not":{}}`, `{"type":"spam"}`, `{`, `{"title":"` + strings.Repeat("x", 70_000) + `"}`}
		want := []string{"", "", "refuses every payload", "is not a JSON Schema", "is not JSON", "at most 65536 are allowed"}
		hello := &dispatcherv1.Hello{NodeId: "n1", InstanceId: "1", Description: &musterv1.NodeDescription{}}
		for i, text := range schemas {
			hello.Description.Executors = append(hello.Description.Executors, &musterv1.ExecutorDescription{
				Name: fmt.Sprint(i), Kinds: []string{"process"}, PayloadSchema: text, PayloadSchemaError: "the worker's own words",
				Message: strings.Repeat("x", 10_000),
			})
		}
		w := c.newWorker("n1", c.dial(d.address))
		w.hello(hello)
		c.wantNode("n1", ready)
		for i, e := range c.nodeState("n1").GetDescription().GetExecutors() {
			if got := e.PayloadSchemaError; !strings.Contains(got, want[i]) || (got == "") != (want[i] == "") {
				t.Errorf("schema %.40s: the record says %q, want %q in it", schemas[i], got, want[i])
			}
			if len(e.Message) > nodereport.MaxExecutorMessage || len(e.PayloadSchema) > 64<<10 {
				t.Errorf("executor %d has a message of %d bytes and a schema of %d", i, len(e.Message), len(e.PayloadSchema))
			}
		}
	})
}

// TestDescriptionsBeyondTheBoundsAreRefused names the field, in a hello and later.
func TestDescriptionsBeyondTheBoundsAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, true)
		d := c.dispatcher("d1")
		synctest.Wait()
		many := func(n int) []string { return strings.Fields(strings.Repeat("x ", n)) }
		one := func(e *musterv1.ExecutorDescription) *musterv1.NodeDescription {
			return &musterv1.NodeDescription{Executors: []*musterv1.ExecutorDescription{e}}
		}
		executors := &musterv1.NodeDescription{}
		for range nodereport.MaxExecutors + 1 {
			executors.Executors = append(executors.Executors, &musterv1.ExecutorDescription{})
		}
		labels, generic := map[string]string{}, []*musterv1.GenericResource{}
		for i := range nodereport.MaxLabels + 1 {
			labels[fmt.Sprint(i)] = ""
		}
		for range nodereport.MaxGenericResources + 1 {
			generic = append(generic, &musterv1.GenericResource{Kind: "gpu"})
		}
		long := strings.Repeat("x", nodereport.MaxName+1)
		named := []*musterv1.GenericResource{{Kind: "gpu"}, {Kind: "gpu", Resource: &musterv1.GenericResource_Named{Named: long}}}
		for field, description := range map[string]*musterv1.NodeDescription{
			"description.labels has 257 entries":                          {Labels: labels},
			"description.labels has a key of 257 bytes, at most 256":      {Labels: map[string]string{long: ""}},
			`description.labels["a"] has 1025 bytes, at most 1024`:        {Labels: map[string]string{"a": strings.Repeat("x", nodereport.MaxLabelValue+1)}},
			"description.resources.generic has 257 entries, at most 256":  {Resources: &musterv1.Resources{Generic: generic}},
			"description.resources.generic[0].kind has 257 bytes":         {Resources: &musterv1.Resources{Generic: []*musterv1.GenericResource{{Kind: long}}}},
			"description.resources.generic[1].named has 257 bytes":        {Resources: &musterv1.Resources{Generic: named}},
			"description.machine.shared.generic has 257 entries, at most": {Machine: &musterv1.Machine{Shared: &musterv1.Resources{Generic: generic}}},
			"description.version has 257 bytes, at most 256 are allowed":  {Version: long},
			"description has":                       {Hostname: strings.Repeat("x", nodereport.MaxDescription)},
			"description.hostname has":              {Hostname: strings.Repeat("x", nodereport.MaxName+1)},
			"description.machine.id has":            {Machine: &musterv1.Machine{Id: strings.Repeat("x", nodereport.MaxName+1)}},
			"description.executors has 33 entries":  executors,
			"description.executors[0].kinds has":    one(&musterv1.ExecutorDescription{Kinds: many(nodereport.MaxKinds + 1)}),
			"description.executors[0].kinds[0] is":  one(&musterv1.ExecutorDescription{Kinds: []string{"a\x1b[2Jb"}}),
			"description.executors[0].capabilities": one(&musterv1.ExecutorDescription{Capabilities: many(nodereport.MaxCapabilities + 1)}),
			"description.network_drivers has 9 entries, at most 8 are allowed": {
				NetworkDrivers: slices.Repeat([]*musterv1.NetworkDriverDescription{{}}, nodereport.MaxNetworkDrivers+1),
			},
			"description.network_drivers[0].drivers has 33 entries": {
				NetworkDrivers: []*musterv1.NetworkDriverDescription{{Drivers: many(nodereport.MaxNetworkEntries + 1)}},
			},
			"description.network_drivers[0].missing[0] has 257 bytes": {
				NetworkDrivers: []*musterv1.NetworkDriverDescription{{Missing: []string{long}}},
			},
			"description.network_drivers[1].version has 257 bytes": {
				NetworkDrivers: []*musterv1.NetworkDriverDescription{{}, {Version: long}},
			},
			"description.executors[0].name has": one(&musterv1.ExecutorDescription{Name: strings.Repeat("x", nodereport.MaxName+1)}),
		} {
			w := c.newWorker("n1", c.dial(d.address))
			w.hello(&dispatcherv1.Hello{NodeId: "n1", InstanceId: "1", Description: description})
			if err := w.ended(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), field) {
				t.Errorf("hello: %v, want INVALID_ARGUMENT that says %q", err, field)
			}
			if c.nodeState("n1") != nil {
				t.Errorf("%s: there is a record of the node", field)
			}
			w = c.worker("n2", d.address)
			w.describe(description)
			if err := w.ended(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), field) {
				t.Errorf("description: %v, want INVALID_ARGUMENT that says %q", err, field)
			}
			w.hangUp()
			time.Sleep(sessionEvery)
		}
	})
}
