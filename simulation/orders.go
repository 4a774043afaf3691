package simulation

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
)

// orders is what befalls what a worker is told of its tasks: while doubled is not 0,
// it hears it twice.
type orders struct{ doubled atomic.Int32 }

func (o *orders) change(by int32) { o.doubled.Add(by) }

func (o *orders) intercept(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := streamer(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, err
	}
	return &orderStream{ClientStream: stream, orders: o}, nil
}

// orderStream is a session that doubles messages. One goroutine receives.
type orderStream struct {
	grpc.ClientStream
	orders *orders
	again  *dispatcherv1.SessionResponse
	// within says that a complete set is under way of which more is to come.
	within bool
}

func (s *orderStream) RecvMsg(m any) error {
	said, ok := m.(*dispatcherv1.SessionResponse)
	if ok && s.again != nil {
		proto.Merge(said, s.again)
		s.again = nil
		return nil
	}
	if err := s.ClientStream.RecvMsg(m); err != nil || !ok {
		return err
	}
	a := said.GetAssignments()
	if a == nil {
		return nil
	}
	// A part of a complete set, said once more, would begin another set.
	part := s.within || a.Complete && !a.Last
	s.within = a.Complete && !a.Last
	if !part && s.orders.doubled.Load() > 0 {
		s.again = proto.CloneOf(said)
	}
	return nil
}
