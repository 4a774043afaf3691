package security_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// connected is a session of a worker that stays.
type connected struct {
	stream grpc.BidiStreamingClient[dispatcherv1.SessionRequest, dispatcherv1.SessionResponse]
	end    func()
}

// worker joins a node and keeps its session, heartbeats included, until the end of the test.
func (c *closed) worker(node string, description *musterv1.NodeDescription) *connected {
	c.t.Helper()
	identity, err := c.join(node, strings.TrimSpace(string(c.file("worker.token"))))
	if err != nil {
		c.t.Fatal(err)
	}
	return c.workerWith(identity, node, description)
}

func (c *closed) workerWith(identity *tls.Certificate, node string, description *musterv1.NodeDescription) *connected {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	c.t.Cleanup(cancel)
	stream, err := dispatcherv1.NewDispatcherServiceClient(c.dial(c.dispatch, identity)).Session(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	hello := &dispatcherv1.Hello{NodeId: node, InstanceId: node, Description: description}
	if err := stream.Send(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Hello{Hello: hello}}); err != nil {
		c.t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			c.t.Fatalf("session of %s: %v", node, err)
		}
		if m.GetWelcome() != nil {
			return &connected{stream, cancel}
		}
	}
}

// beat sends heartbeats until stop is called.
func (w *connected) beat() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			// That the session has ended shows as the state of the node.
			_ = w.stream.Send(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Heartbeat{Heartbeat: &dispatcherv1.Heartbeat{}}})
		}
	}()
	return func() { close(quit); <-done }
}

// nodeOf returns a node as the API shows it, nil if it does not.
func (c *closed) nodeOf(api musterv1.ControlServiceClient, id string) *musterv1.Node {
	c.t.Helper()
	resp, err := api.GetNode(c.with(c.admin), &musterv1.GetNodeRequest{Node: id})
	if err != nil {
		return nil
	}
	return resp.Node
}

// TestWorkerHasNoSayBeyondItsNode has a worker report executors whose schemas refuse
// every payload, and flood the store with descriptions.
func TestWorkerHasNoSayBeyondItsNode(t *testing.T) {
	c := start(t)
	admin := musterv1.NewControlServiceClient(c.dial(c.api, nil))
	process := func(schema string) *musterv1.ExecutorDescription {
		return &musterv1.ExecutorDescription{
			Name: "process", Kinds: []string{"process"}, Health: musterv1.ExecutorDescription_HEALTHY, PayloadSchema: schema,
		}
	}
	const accepting = `{"type":"object","required":["command"]}`
	honest := c.worker("honest", &musterv1.NodeDescription{Hostname: "honest", Executors: []*musterv1.ExecutorDescription{process(accepting)}})
	stop := honest.beat()
	defer stop()
	evil := &musterv1.NodeDescription{Hostname: "evil"}
	for i := range 9 {
		evil.Executors = append(evil.Executors, process(fmt.Sprintf(`{"not":{},"title":"%d"}`, i)))
	}
	// "a" comes before the honest node wherever nodes are in order.
	attacker := c.worker("a-evil", evil)
	c.eventually("both nodes are ready", func() bool {
		return c.nodeOf(admin, "honest").GetStatus().GetState() == musterv1.NodeStatus_READY &&
			c.nodeOf(admin, "a-evil").GetStatus().GetState() == musterv1.NodeStatus_READY
	})
	payload, err := structpb.NewStruct(map[string]any{"command": []any{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	created := 0
	create := func(when string) {
		t.Helper()
		created++
		_, err := admin.CreateService(c.with(c.admin), &musterv1.CreateServiceRequest{Spec: &musterv1.ServiceSpec{
			Name: fmt.Sprintf("job%d", created),
			Task: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "process", Payload: payload}}},
		}})
		if err != nil {
			t.Errorf("while the attacker's node is %s, no service is created: %v", when, err)
		}
	}
	create("ready")
	for _, e := range c.nodeOf(admin, "a-evil").Description.Executors {
		if e.PayloadSchemaError != "refuses every payload" {
			t.Errorf("the node shows the fault %q of schema %s", e.PayloadSchemaError, e.PayloadSchema)
		}
	}
	drained := c.nodeOf(admin, "a-evil")
	_, err = admin.UpdateNode(c.with(c.admin), &musterv1.UpdateNodeRequest{
		Node: "a-evil", Version: drained.Meta.GetVersion(), Spec: &musterv1.NodeSpec{Availability: musterv1.NodeSpec_DRAIN},
	})
	if err != nil {
		t.Fatal(err)
	}
	create("drained")

	t.Run("floods descriptions", func(t *testing.T) {
		written, last := map[string]bool{}, ""
		for began, i := time.Now(), 0; time.Since(began) < 5*time.Second; i++ {
			last = fmt.Sprintf("evil-%d", i)
			err := attacker.stream.Send(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Description{
				Description: &musterv1.NodeDescription{Hostname: last},
			}})
			if err != nil {
				t.Fatal(err)
			}
			if i%20 == 0 {
				written[c.nodeOf(admin, "a-evil").GetDescription().GetHostname()] = true
			}
		}
		t.Logf("the API showed %d of the descriptions up to %s", len(written), last)
		if len(written) > 12 {
			t.Errorf("the API showed %d descriptions of one node in 5 s, want at most 12", len(written))
		}
		c.eventually("the last description is shown", func() bool {
			heartbeat := &dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Heartbeat{Heartbeat: &dispatcherv1.Heartbeat{}}}
			if err := attacker.stream.Send(heartbeat); err != nil {
				t.Fatal(err)
			}
			return c.nodeOf(admin, "a-evil").GetDescription().GetHostname() == last
		})
	})
	attacker.end()
	c.eventually("the attacker's node is away", func() bool {
		return c.nodeOf(admin, "a-evil").GetStatus().GetState() != musterv1.NodeStatus_READY
	})
	create("away")
	if state := c.nodeOf(admin, "honest").GetStatus().GetState(); state != musterv1.NodeStatus_READY {
		t.Errorf("the other node is %v in the end, want READY", state)
	}
}
