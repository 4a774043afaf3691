package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpcpeer "google.golang.org/grpc/peer"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/workerd/internal/dependencies"
)

const (
	// defaultPeriod is the heartbeat period if a dispatcher names none.
	defaultPeriod = 2 * time.Second
	// goodbyeTimeout bounds the end of a session in order.
	goodbyeTimeout = 2 * time.Second
)

// stream is one session.
type stream struct {
	c    *Client
	grpc grpc.BidiStreamingClient[dispatcherv1.SessionRequest, dispatcherv1.SessionResponse]
	// logs leads from the log readers to the writer.
	logs chan *dispatcherv1.LogData
	// probes leads from the probe to the writer, and probing has room for the one that
	// runs.
	probes  chan *dispatcherv1.ProbeResult
	probing chan struct{}
	// period is the heartbeat period, and periods holds a new one for the writer.
	period  time.Duration
	periods chan time.Duration
	// told is the description that was sent last.
	told *musterv1.NodeDescription
	// monitor watches whether the dispatcher answers heartbeats.
	monitor heartbeatMonitor

	// done is closed when the reader has ended, for the reason in readErr.
	done    chan struct{}
	readErr error

	mu            sync.Mutex
	subscriptions map[string]*subscription
	readers       sync.WaitGroup
}

// session runs one session with a dispatcher. It reports whether the dispatcher sent
// Welcome, and returns why the session ended. The end of ctx is not an error.
func (c *Client) session(ctx context.Context, address string) (welcomed bool, err error) {
	conn, err := c.cfg.Dial(address)
	if err != nil {
		return false, fmt.Errorf("dial %s: %w", address, err)
	}
	defer func() {
		if cerr := conn.Close(); cerr != nil {
			c.log.Debug("connection ended with an error", zap.String("dispatcher", address), zap.Error(cerr))
		}
	}()
	// The stream outlives ctx a little, for the goodbye.
	inner, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	s := &stream{
		c: c, logs: make(chan *dispatcherv1.LogData), probes: make(chan *dispatcherv1.ProbeResult), probing: make(chan struct{}, 1), done: make(chan struct{}), periods: make(chan time.Duration, 1), subscriptions: map[string]*subscription{},
	}
	welcome, err := s.open(ctx, inner, cancel, conn)
	if err != nil {
		if cause := context.Cause(inner); cause != nil {
			err = cause
		}
		return false, err
	}
	c.log.Info("session with dispatcher", zap.String("dispatcher", address), zap.Duration("heartbeat_period", s.period))
	c.metrics.begun.Inc()
	c.metrics.connected.Set(1)
	c.status.Store(&Status{Connected: true, Since: time.Now()})
	defer func() {
		c.metrics.connected.Set(0)
		c.status.Store(&Status{Since: time.Now()})
	}()
	c.where.prefer(address)
	c.where.learn(welcome.GetDispatchers())
	if p, ok := grpcpeer.FromContext(s.grpc.Context()); ok && c.cfg.Connected != nil {
		c.cfg.Connected(p.LocalAddr, welcome.GetDispatchers())
	}
	c.cfg.Tasks.Begin()
	c.reports.begin(c.cfg.Tasks.IDs())

	go func() {
		defer close(s.done)
		s.readErr = s.read(inner)
	}()
	err = s.write(ctx, inner, cancel)
	if ctx.Err() != nil {
		s.leave(inner, cancel)
	}
	cancel(nil)
	// The reader begins the log readers, so it ends first.
	<-s.done
	s.readers.Wait()
	var silent *errSilent
	switch {
	case ctx.Err() != nil:
		return true, nil
	case errors.As(err, &silent):
		return true, err
	case errors.Is(s.readErr, io.EOF):
		return true, fmt.Errorf("dispatcher ended the session: %w", s.readErr)
	}
	return true, s.readErr
}

// open sends Hello and waits for Welcome.
func (s *stream) open(ctx, inner context.Context, cancel context.CancelCauseFunc, conn *grpc.ClientConn) (*dispatcherv1.Welcome, error) {
	stop := context.AfterFunc(ctx, func() { cancel(ctx.Err()) })
	defer stop()
	limit := s.c.cfg.WelcomeTimeout
	timer := time.AfterFunc(limit, func() { cancel(&errSilent{"welcome", limit}) })
	defer timer.Stop()
	var err error
	s.grpc, err = dispatcherv1.NewDispatcherServiceClient(conn).Session(inner)
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	s.told, _ = s.c.cfg.Describer.Description()
	tasks := 0
	if !s.c.Status().Since.IsZero() {
		tasks = len(s.c.cfg.Tasks.IDs())
	}
	// An error of Send is only io.EOF; Recv tells what it was.
	_ = s.grpc.Send(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Hello{Hello: &dispatcherv1.Hello{
		NodeId: s.c.cfg.NodeID, Description: s.told, InstanceId: s.c.cfg.Instance, Tasks: uint32(tasks),
		AssignmentProtocol: dependencies.Protocol, AnswersProbes: true, AnswersVolumes: s.c.cfg.Volumes != nil,
	}}})
	first, err := s.grpc.Recv()
	if err != nil {
		return nil, fmt.Errorf("await welcome: %w", err)
	}
	switch m := first.GetMessage().(type) {
	case *dispatcherv1.SessionResponse_Welcome:
		s.period = periodOf(m.Welcome)
		s.monitor.answered = m.Welcome.GetAnswersHeartbeats()
		return m.Welcome, nil
	case *dispatcherv1.SessionResponse_Redirect:
		return nil, s.redirected(m.Redirect)
	}
	return nil, fmt.Errorf("await welcome: dispatcher began with %T", first.GetMessage())
}

func periodOf(w *dispatcherv1.Welcome) time.Duration {
	if p := w.GetHeartbeatPeriod().AsDuration(); p > 0 {
		return p
	}
	return defaultPeriod
}

// firstHeartbeat returns the time until the first heartbeat of a period. Workers
// that connect or learn a new period together spread over the period.
func firstHeartbeat(period time.Duration) time.Duration { return rand.N(period) + 1 }

// nextHeartbeat returns the time until the next heartbeat. It is shorter than the
// period by up to a tenth, so that workers that send at the same moment drift apart.
// It is never longer: a dispatcher takes a worker for dead after three periods.
func nextHeartbeat(period time.Duration) time.Duration { return period - rand.N(period/10+1) }

// redirected returns the error that ends the session because of a redirect.
func (s *stream) redirected(r *dispatcherv1.Redirect) error {
	s.c.where.learn(r.GetDispatchers())
	return &redirect{r.GetAddress()}
}

// read handles the dispatcher's messages until the stream ends.
func (s *stream) read(inner context.Context) error {
	for {
		s.monitor.reading()
		msg, err := s.grpc.Recv()
		if err != nil {
			return err
		}
		s.monitor.received()
		switch m := msg.GetMessage().(type) {
		case *dispatcherv1.SessionResponse_Assignments:
			if err := s.c.cfg.Tasks.Assign(inner, m.Assignments); err != nil {
				return fmt.Errorf("take in assignments: %w", err)
			}
		case *dispatcherv1.SessionResponse_StatusAck:
			s.c.reports.ack(m.StatusAck.GetSequence())
		case *dispatcherv1.SessionResponse_LogRequest:
			s.subscribe(inner, m.LogRequest)
		case *dispatcherv1.SessionResponse_LogCredit:
			s.give(m.LogCredit)
		case *dispatcherv1.SessionResponse_LogCancel:
			s.unsubscribe(m.LogCancel.GetSubscriptionId())
		case *dispatcherv1.SessionResponse_ProbeOrder:
			s.probe(inner, m.ProbeOrder)
		case *dispatcherv1.SessionResponse_Redirect:
			return s.redirected(m.Redirect)
		case *dispatcherv1.SessionResponse_Dispatchers:
			s.c.where.learn(m.Dispatchers.GetAddresses())
		case *dispatcherv1.SessionResponse_Welcome:
			s.c.where.learn(m.Welcome.GetDispatchers())
			// Only the newest counts, and the reader must not wait for the writer.
			select {
			case <-s.periods:
			default:
			}
			s.periods <- periodOf(m.Welcome)
		}
	}
}

// write sends all messages until the stream or ctx ends. Nothing else sends. Its error says
// that the dispatcher did not answer, or that a send failed; then the reader knows why.
func (s *stream) write(ctx, inner context.Context, cancel context.CancelCauseFunc) error {
	// If ctx ends while a send does not get through, there is no goodbye.
	stuck := context.AfterFunc(ctx, func() {
		_ = backoff.Sleep(inner, goodbyeTimeout)
		cancel(ctx.Err())
	})
	defer stuck()
	beat := time.NewTimer(firstHeartbeat(s.period))
	defer beat.Stop()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		description, redescribed := s.c.cfg.Describer.Description()
		if description != s.told {
			s.told = description
			err := s.grpc.Send(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Description{Description: description}})
			if err != nil {
				return err
			}
		}
		var due <-chan time.Time
		wait, acknowledgement, something := s.c.reports.next(time.Now(), s.c.cfg.AckTimeout)
		if something {
			timer.Reset(wait)
			due = timer.C
		}
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-s.done:
			return nil
		case period := <-s.periods:
			if period != s.period {
				s.period = period
				beat.Reset(firstHeartbeat(period))
			}
		case <-redescribed:
		case <-s.c.reports.wake:
		case <-beat.C:
			if err := s.monitor.beat(s.period); err != nil {
				return err
			}
			beat.Reset(nextHeartbeat(s.period))
			err = s.grpc.Send(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Heartbeat{Heartbeat: &dispatcherv1.Heartbeat{}}})
		case data := <-s.logs:
			err = s.grpc.Send(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_LogData{LogData: data}})
		case result := <-s.probes:
			err = s.grpc.Send(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_ProbeResult{ProbeResult: result}})
		case <-due:
			if acknowledgement {
				return &errSilent{"acknowledgement", s.c.cfg.AckTimeout}
			}
			if report := s.c.reports.take(time.Now(), s.c.cfg.Tasks); report != nil {
				s.c.metrics.reports.Inc()
				s.c.metrics.statuses.Add(float64(len(report.GetStatuses())))
				err = s.grpc.Send(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_StatusReport{StatusReport: report}})
			}
		}
		if err != nil {
			return err
		}
	}
}

// leave ends the session in order: the worker is about to be restarted, and its tasks keep
// running.
func (s *stream) leave(inner context.Context, cancel context.CancelCauseFunc) {
	timer := time.AfterFunc(goodbyeTimeout, func() { cancel(nil) })
	defer timer.Stop()
	goodbye := &dispatcherv1.Goodbye{Restarting: true}
	if err := s.grpc.Send(&dispatcherv1.SessionRequest{Message: &dispatcherv1.SessionRequest_Goodbye{Goodbye: goodbye}}); err != nil {
		return
	}
	if err := s.grpc.CloseSend(); err != nil {
		return
	}
	select {
	case <-s.done:
	case <-inner.Done():
	}
}
