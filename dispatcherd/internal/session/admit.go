package session

import (
	"errors"
	"net"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/bounds"
	"github.com/musterhq/muster/dispatcherd/internal/calls"
	"github.com/musterhq/muster/dispatcherd/internal/liveness"
	"github.com/musterhq/muster/dispatcherd/internal/probes"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/store"
)

// claimPoll is the time between two attempts to attach a session while it is not
// decided which worker is the node.
const claimPoll = 50 * time.Millisecond

// admit attaches a session to the shard of its node, or returns a redirect.
func (v *Server) admit(s *session, hello *dispatcherv1.Hello) (*dispatcherv1.SessionResponse, error) {
	if err := checkHello(hello); err != nil {
		return nil, err
	}
	if err := v.checkIdentity(s, hello.NodeId); err != nil {
		return nil, err
	}
	s.worker = liveness.Worker{Node: hello.NodeId, Instance: hello.InstanceId, Address: host(s.stream), Begun: s.begun}
	s.sent = assignments.NewSent(hello.AssignmentProtocol)
	number := store.ShardOf(s.worker.Node)
	wait := time.NewTimer(v.cfg.OwnerWait)
	defer wait.Stop()
	poll := time.NewTimer(time.Hour)
	defer poll.Stop()
	for {
		expired := wait.C
		moved := v.cfg.Directory.Changed()
		shard, changed := v.cfg.Shards.Shard(s.worker.Node)
		if shard != nil {
			s.setShard(shard)
			err := shard.Attach(s, hello)
			if err == nil {
				s.sendWelcome()
				s.logs.Connect(s.worker.Node)
				s.probes.Connect(s.worker.Node, probes.Abilities{Networks: hello.AnswersProbes, Volumes: hello.AnswersVolumes})
				return nil, nil
			}
			var contested *liveness.ContestedError
			switch {
			case errors.As(err, &contested):
				// That is decided soon, and a redirect would not help.
				expired = nil
				poll.Reset(claimPoll)
			case status.Code(err) == codes.AlreadyExists:
				v.metrics.refused.Inc()
				v.log.Warn("refused a second worker of a connected node",
					zap.String("node", s.worker.Node), zap.String("instance", s.worker.Instance), zap.String("address", s.worker.Address),
					zap.String("hostname", hello.Description.GetHostname()), zap.Error(err))
				return nil, err
			case !errors.Is(err, liveness.ErrNotOwned):
				return nil, err
			}
		} else if m, ok := v.cfg.Directory.Owner(number); ok && m.Instance != v.cfg.Instance {
			return v.Redirect(number), nil
		}
		// No replica owns the shard, or this one is about to.
		select {
		case <-moved:
		case <-changed:
		case <-poll.C:
		case <-s.stream.Context().Done():
			return nil, endOf(s.stream.Context().Err())
		case <-s.done:
			return nil, calls.ErrStopping
		case <-v.cfg.Calls.Stopping():
			return nil, calls.ErrStopping
		case <-expired:
			return v.Redirect(number), nil
		}
	}
}

// checkIdentity refuses a worker whose certificate is that of another node. A
// session reads and writes only what belongs to its node. Without TLS there are no
// certificates.
func (v *Server) checkIdentity(s *session, node string) error {
	caller, ok := auth.CallerOf(s.stream.Context())
	if !ok || caller.Name == node {
		return nil
	}
	return v.cfg.Guard.Refuse(s.stream.Context(), dispatcherv1.DispatcherService_Session_FullMethodName,
		status.Errorf(codes.PermissionDenied, "the certificate is that of node %s, and the worker says that it is %s", caller.Name, bounds.Clip(node, bounds.MaxID)))
}

func checkHello(h *dispatcherv1.Hello) error {
	if h == nil {
		return status.Error(codes.InvalidArgument, "the first message of a session must be hello")
	}
	if err := errors.Join(bounds.CheckNodeID("node_id", h.NodeId), bounds.CheckID("instance_id", h.InstanceId)); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return bounds.CheckDescription(h.Description)
}

// host returns the address that a worker connected from, without its port, which
// differs each time.
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
