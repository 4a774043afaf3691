package logs

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/calls"
)

// A reader that stands still and a reader that reads have the same worker. The
// lines that wait for the first are limited. Both get all lines in the end.
func TestSlowReaderDoesNotDelayOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit, lines = 256 << 10, 1000
		s := newSite(t, limit, 8192)
		w := s.worker("n1")
		conn := s.dial()
		slow, _ := subscribe(t, "", conn, "n1", "t1")
		quick, _ := subscribe(t, "", conn, "n1", "t1")
		requests := w.asked()
		sent := map[string]int{}
		text := strings.Repeat("x", 4<<10)
		// send sends as much as there is credit for.
		send := func(id string) {
			for sent[id] < lines && w.left(id) > 0 {
				l := line("t1", fmt.Sprint(sent[id], " ", text))
				sent[id]++
				w.log(id, sent[id] == lines, l)
				synctest.Wait()
			}
		}
		read := func(r reader, id string) {
			for next := 0; ; {
				send(id)
				m, err := r.Recv()
				if errors.Is(err, io.EOF) && next == lines {
					return
				}
				if err != nil {
					t.Fatalf("after %d lines: %v", next, err)
				}
				for _, l := range m.Messages {
					if want := fmt.Sprint(next, " "); !strings.HasPrefix(string(l.Data), want) {
						t.Fatalf("line %.10q, want number %d", l.Data, next)
					}
					next++
				}
				synctest.Wait()
			}
		}
		send(requests[0].SubscriptionId)
		// Between worker and reader are the queue, one message, and the buffers of
		// the connection.
		if n := sent[requests[0].SubscriptionId] * len(text); n < limit/2 || n > limit+maxMessageBytes+(512<<10) {
			t.Errorf("%d bytes were sent to a reader that stands still", n)
		}
		read(quick, requests[1].SubscriptionId)
		read(slow, requests[0].SubscriptionId)
		_ = conn.Close()
	})
}

func TestAllFieldsOfALineCount(t *testing.T) {
	t.Parallel()
	unknown := &musterv1.LogMessage{TaskId: "t"}
	unknown.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 1000, protowire.BytesType), strings.Repeat("x", 100_000)))
	for name, l := range map[string]*musterv1.LogMessage{
		"source":        {TaskId: "t", Source: strings.Repeat("x", 2000)},
		"unknown field": unknown,
	} {
		s := newSubscription("n1", "", []string{"t"}, 1000)
		s.put([]*musterv1.LogMessage{l}, false)
		s.put([]*musterv1.LogMessage{l}, false)
		if code := status.Code(s.err()); code != codes.ResourceExhausted {
			t.Errorf("%s: code %v, want %v", name, code, codes.ResourceExhausted)
		}
	}
}

// A worker's second session takes over its readers-to-be. The end of the first
// session, which is noticed later, does not cut the second off.
func TestNewSessionReplacesOld(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 1<<20, 8192)
		conn := s.dial()
		first := s.worker("n1")
		old, _ := subscribe(t, "", conn, "n1", "t1")
		second := s.worker("n1")
		first.Close()
		if _, err := old.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("reader of a session that has ended got %v, want UNAVAILABLE", err)
		}
		r, cancel := subscribe(t, "", conn, "n1", "t1")
		if len(first.asked()) != 1 || len(second.asked()) != 1 {
			t.Fatalf("the sessions were asked %d and %d times, want once each", len(first.asked()), len(second.asked()))
		}
		id := second.asked()[0].SubscriptionId
		second.log(id, false, line("t1", "one"))
		if m, err := r.Recv(); err != nil || string(m.Messages[0].Data) != "one" || m.Messages[0].NodeId != "n1" {
			t.Errorf("read %v, %v", m, err)
		}
		cancel()
		if got := second.cancelled(); len(got) != 1 || got[0] != id {
			t.Errorf("cancelled are %v, want %s", got, id)
		}
		second.Close()
		if r, _ = subscribe(t, "", conn, "n1", "t1"); true {
			if _, err := r.Recv(); status.Code(err) != codes.Unavailable {
				t.Errorf("reader of a node without a session got %v, want UNAVAILABLE", err)
			}
		}
		late := s.broker.NewWorker(second)
		late.Close()
		late.Connect("n1")
		if s.broker.worker("n1") != nil {
			t.Error("a session that has ended can be reached")
		}
		_ = conn.Close()
	})
}

func TestReadersEndWithTheDispatcher(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 1<<20, 8192)
		conn := s.dial()
		s.worker("n1")
		r, _ := subscribe(t, "", conn, "n1", "t1")
		s.calls.Close()
		for _, when := range []string{"open", "new"} {
			if _, err := r.Recv(); err == nil || err.Error() != calls.ErrStopping.Error() {
				t.Errorf("%s reader got %v, want %v", when, err, calls.ErrStopping)
			}
			r, _ = subscribe(t, "", conn, "n1", "t1")
		}
		_ = conn.Close()
	})
}
