package simulation

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
)

// reports is what befalls what a worker reports: it can be doubled, and late.
type reports struct {
	mu      sync.Mutex
	doubled int
	delay   time.Duration
}

func newReports() *reports { return &reports{} }

// change changes what befalls reports from now on.
func (r *reports) change(doubled int, delay time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.doubled += doubled
	r.delay += delay
}

func (r *reports) now() (doubled bool, delay time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.doubled > 0, r.delay
}

func (r *reports) intercept(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := streamer(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, err
	}
	return &reportStream{stream, r}, nil
}

// reportStream is a session that doubles and delays what is reported.
type reportStream struct {
	grpc.ClientStream
	reports *reports
}

func (s *reportStream) SendMsg(m any) error {
	said, ok := m.(*dispatcherv1.SessionRequest)
	if !ok || said.GetStatusReport() == nil {
		return s.ClientStream.SendMsg(m)
	}
	doubled, delay := s.reports.now()
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.Context().Done():
		}
	}
	if err := s.ClientStream.SendMsg(m); err != nil || !doubled {
		return err
	}
	return s.ClientStream.SendMsg(m)
}
