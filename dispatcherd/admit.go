package dispatcherd

import (
	"errors"
	"net"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/bounds"
	"github.com/musterhq/muster/dispatcherd/internal/calls"
	"github.com/musterhq/muster/dispatcherd/internal/liveness"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/store"
)

// claimPoll is the time between two looks at a claim that is not decided yet.
const claimPoll = 50 * time.Millisecond

var (
	errRestored  = status.Error(codes.Unavailable, "the store was restored from a snapshot: say everything anew")
	errShardLost = status.Error(codes.Unavailable, "the node's shard passes on to another dispatcher")
)

// admit makes a session its node's one, or returns whom the worker is to speak
// to instead.
func (d *Daemon) admit(s *session, hello *dispatcherv1.Hello) (*dispatcherv1.SessionResponse, error) {
	if err := checkHello(hello); err != nil {
		return nil, err
	}
	if err := d.checkIdentity(s, hello.NodeId); err != nil {
		return nil, err
	}
	s.node, s.instance, s.address = hello.NodeId, hello.InstanceId, host(s.stream)
	s.sent = assignments.NewSent(hello.AssignmentProtocol)
	number := store.ShardOf(s.node)
	wait := time.NewTimer(d.cfg.OwnerWait)
	defer wait.Stop()
	poll := time.NewTimer(time.Hour)
	defer poll.Stop()
	for {
		expired := wait.C
		moved := d.directory.Changed()
		shard, changed := d.owned.of(s.node)
		if shard != nil {
			s.tryShard(shard)
			err := shard.Attach(s, hello)
			if err == nil {
				s.welcome()
				s.logs.Connect(s.node)
				return nil, nil
			}
			var contested *liveness.ContestedError
			switch {
			case errors.As(err, &contested):
				// That is decided soon, one way or the other, and not by a redirect.
				expired = nil
				poll.Reset(claimPoll)
			case status.Code(err) == codes.AlreadyExists:
				d.metrics.refused.Inc()
				d.log.Warn("a second worker claims to be a node that is connected, and is refused",
					zap.String("node", s.node), zap.String("instance", s.instance), zap.String("address", s.address),
					zap.String("hostname", hello.Description.GetHostname()), zap.Error(err))
				return nil, err
			case !errors.Is(err, liveness.ErrNotOwned):
				return nil, err
			}
		} else if m, ok := d.directory.Owner(number); ok && m.Instance != d.member.Instance {
			return d.redirect(number), nil
		}
		// Nobody owns the shard, or this replica is about to.
		select {
		case <-moved:
		case <-changed:
		case <-poll.C:
		case <-s.stream.Context().Done():
			return nil, ending(s.stream.Context().Err())
		case <-s.done:
			return nil, calls.ErrStopping
		case <-d.calls.Stopping():
			return nil, calls.ErrStopping
		case <-expired:
			return d.redirect(number), nil
		}
	}
}

// checkIdentity refuses a worker that claims to be another node than its
// certificate says. Everything that a session reads and writes is that of its
// node. Where connections are in the clear nobody has a certificate.
func (d *Daemon) checkIdentity(s *session, node string) error {
	caller, ok := auth.CallerOf(s.stream.Context())
	if !ok || caller.Name == node {
		return nil
	}
	return d.guard.Refuse(s.stream.Context(), dispatcherv1.DispatcherService_Session_FullMethodName,
		status.Errorf(codes.PermissionDenied, "the certificate is that of node %s, and the worker says that it is %s", caller.Name, bounds.Clip(node, bounds.MaxID)))
}

// welcome is the first that a worker is told, and what it is told when that has
// changed.
func (d *Daemon) welcome(s *session) *dispatcherv1.SessionResponse {
	spec := &musterv1.NodeSpec{}
	if e, ok := d.tables.Nodes.Get(d.store.Snapshot(), s.node); ok && e.Value.Spec != nil {
		spec = e.Value.Spec
	}
	return &dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Welcome{Welcome: &dispatcherv1.Welcome{
		HeartbeatPeriod: durationpb.New(time.Duration(s.period.Load())), Node: spec, Dispatchers: d.addresses(), AnswersHeartbeats: true,
	}}}
}

// redirect names the owner of a shard, or nobody if this replica was the last
// that is known.
func (d *Daemon) redirect(number int) *dispatcherv1.SessionResponse {
	r := &dispatcherv1.Redirect{Dispatchers: d.addresses()}
	if m, ok := d.directory.Owner(number); ok && m.Instance != d.member.Instance {
		r.Address = m.Address
	}
	return &dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Redirect{Redirect: r}}
}

func checkHello(h *dispatcherv1.Hello) error {
	if h == nil {
		return status.Error(codes.InvalidArgument, "a session's first message has to be hello")
	}
	if err := errors.Join(bounds.CheckID("node_id", h.NodeId), bounds.CheckID("instance_id", h.InstanceId)); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return bounds.CheckDescription(h.Description)
}

// host is the address that a worker dialled from, without its port, which is
// another one each time.
func host(s stream) string {
	p, ok := peer.FromContext(s.Context())
	if !ok || p.Addr == nil {
		return ""
	}
	h, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return p.Addr.String()
	}
	return h
}
