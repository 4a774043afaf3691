package probes_test

import (
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/calls"
	"github.com/musterhq/muster/dispatcherd/internal/probes"
)

// session records what is sent to a worker.
type session struct{ sent chan *dispatcherv1.ProbeOrder }

func (s session) Send(m *dispatcherv1.SessionResponse) { s.sent <- m.GetProbeOrder() }

var request = &dispatcherv1.ProbeRequest{NodeId: "n1", NetworkId: "net", ServiceId: "svc"}

// answer is the end of a call.
type answer struct {
	response *dispatcherv1.ProbeResponse
	err      error
}

// inBubble runs a test with a broker, and a function that begins a probe.
func inBubble(t *testing.T, test func(b *probes.Broker, probe func() <-chan answer)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		group := calls.NewGroup()
		b := probes.NewBroker(group)
		test(b, func() <-chan answer {
			ended := make(chan answer, 1)
			go func() {
				response, err := b.Probe(t.Context(), request)
				ended <- answer{response, err}
			}()
			return ended
		})
		group.Close()
	})
}

func wantCode(t *testing.T, a answer, want codes.Code) {
	t.Helper()
	if status.Code(a.err) != want {
		t.Errorf("Probe = %v, %v, want %s", a.response, a.err, want)
	}
}

func TestProbeReturnsTheAnswerOfTheWorker(t *testing.T) {
	inBubble(t, func(b *probes.Broker, probe func() <-chan answer) {
		s := session{make(chan *dispatcherv1.ProbeOrder, 1)}
		w := b.NewWorker(s)
		w.Connect("n1", probes.Abilities{Networks: true})
		ended := probe()
		order := <-s.sent
		if order.GetNetworkId() != "net" || order.GetServiceId() != "svc" {
			t.Errorf("the worker was sent %v", order)
		}
		wantCode(t, <-probe(), codes.ResourceExhausted)
		want := &networkv1.ProbeResponse{Source: "10.64.4.1"}
		w.Deliver(&dispatcherv1.ProbeResult{ProbeId: "another"})
		w.Deliver(&dispatcherv1.ProbeResult{ProbeId: order.GetProbeId(), Response: want})
		if a := <-ended; a.err != nil || !proto.Equal(a.response.GetResponse(), want) {
			t.Errorf("Probe = %v, %v, want %v", a.response, a.err, want)
		}
		// Another one may follow, and its error is the caller's.
		ended = probe()
		w.Deliver(&dispatcherv1.ProbeResult{ProbeId: (<-s.sent).GetProbeId(), Error: "no plugin"})
		wantCode(t, <-ended, codes.FailedPrecondition)
	})
}

func TestAnswersOfWorkersAreBounded(t *testing.T) {
	inBubble(t, func(b *probes.Broker, probe func() <-chan answer) {
		s := session{make(chan *dispatcherv1.ProbeOrder, 1)}
		w := b.NewWorker(s)
		w.Connect("n1", probes.Abilities{Networks: true})
		ended := probe()
		long := strings.Repeat("x", 1<<20)
		response := &networkv1.ProbeResponse{Source: long, Checks: make([]*musterv1.NetworkCheck, 100_000)}
		for i := range response.Checks {
			response.Checks[i] = &musterv1.NetworkCheck{}
		}
		response.Checks[0] = &musterv1.NetworkCheck{Target: long, Message: long, TaskId: long, NodeId: long, Took: &durationpb.Duration{Seconds: 1, Nanos: -5}}
		w.Deliver(&dispatcherv1.ProbeResult{ProbeId: (<-s.sent).GetProbeId(), Response: response})
		a := <-ended
		if n, size := len(a.response.GetResponse().GetChecks()), proto.Size(a.response); n != 2000 || size > 64<<10 {
			t.Errorf("apid gets %d checks in %d bytes, want 2000 in at most 64 KiB", n, size)
		}
		if took := a.response.GetResponse().GetChecks()[0].GetTook(); took != nil {
			t.Errorf("apid gets the duration %v, which is none", took)
		}
		ended = probe()
		w.Deliver(&dispatcherv1.ProbeResult{ProbeId: (<-s.sent).GetProbeId(), Error: long})
		if a := <-ended; len(a.err.Error()) > 2<<10 {
			t.Errorf("apid gets an error of %d bytes", len(a.err.Error()))
		}
	})
}

func TestProbeOfASilentWorkerEnds(t *testing.T) {
	inBubble(t, func(b *probes.Broker, probe func() <-chan answer) {
		s := session{make(chan *dispatcherv1.ProbeOrder, 1)}
		w := b.NewWorker(s)
		w.Connect("n1", probes.Abilities{Networks: true})
		ended := probe()
		late := <-s.sent
		wantCode(t, <-ended, codes.DeadlineExceeded)
		w.Deliver(&dispatcherv1.ProbeResult{ProbeId: late.GetProbeId()})
		ended = probe()
		<-s.sent
		w.Close()
		wantCode(t, <-ended, codes.Unavailable)
	})
}

func TestProbeOfAWorkerThatCannotIsRefused(t *testing.T) {
	inBubble(t, func(b *probes.Broker, probe func() <-chan answer) {
		wantCode(t, <-probe(), codes.Unavailable)
		b.NewWorker(session{}).Connect("n1", probes.Abilities{Volumes: true})
		wantCode(t, <-probe(), codes.Unimplemented)
	})
}
