package control

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/store"
)

func (s *Server) nodeKind() *kind[*recordv1.Node, *objects.Node, *musterv1.Node] {
	return &kind[*recordv1.Node, *objects.Node, *musterv1.Node]{
		Backend: s.Backend, name: "node", table: s.Tables.Nodes, implicit: true,
		find: (*objects.Reader).FindNode, ascend: (*objects.Reader).Nodes, message: (*objects.Reader).NodeMessage,
	}
}

// GetNode returns one node.
func (s *Server) GetNode(ctx context.Context, req *musterv1.GetNodeRequest) (*musterv1.GetNodeResponse, error) {
	m, err := s.nodes.get(ctx, req.Node)
	return &musterv1.GetNodeResponse{Node: m}, err
}

// ListNodes returns a page of nodes.
func (s *Server) ListNodes(ctx context.Context, req *musterv1.ListNodesRequest) (*musterv1.ListNodesResponse, error) {
	nodes, next, err := s.nodes.list(ctx, req, func(*objects.Reader) selection[*objects.Node] {
		return selection[*objects.Node]{keep: func(n *objects.Node) bool {
			spec := n.Spec()
			return oneOf(req.States, n.State.State) && oneOf(req.Availabilities, spec.Availability) && oneOf(req.Roles, spec.Role)
		}}
	})
	if err != nil {
		return nil, err
	}
	return &musterv1.ListNodesResponse{Nodes: nodes, NextPageToken: next}, nil
}

// UpdateNode replaces the spec of a node.
func (s *Server) UpdateNode(ctx context.Context, req *musterv1.UpdateNodeRequest) (*musterv1.UpdateNodeResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	if err := s.validate.Node(req.Spec); err != nil {
		return nil, err
	}
	now := time.Now().UnixMilli()
	m, err := s.nodes.update(ctx, req.Node, &req.Version, func(_ *store.Tx, _ string, e store.Entry[*recordv1.Node]) (*recordv1.Node, error) {
		record := &recordv1.Node{CreatedAt: now}
		if e.Version > 0 {
			if e.Value.Removed {
				return nil, backend.NotFound("node", req.Node)
			}
			if proto.Equal(e.Value.Spec, req.Spec) {
				return nil, backend.ErrNoChange
			}
			record = proto.CloneOf(e.Value)
		}
		record.Spec, record.UpdatedAt = req.Spec, now
		return record, nil
	})
	return &musterv1.UpdateNodeResponse{Node: m}, err
}

// RemoveNode removes a node. Its record says so until no certificate of the node is
// valid.
func (s *Server) RemoveNode(ctx context.Context, req *musterv1.RemoveNodeRequest) (*musterv1.RemoveNodeResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	id, err := s.nodes.id(ctx, req.Node)
	if _, joined := s.Tables.Nodes.Get(s.Snapshot(), req.Node); joined && status.Code(err) == codes.NotFound {
		// It has a certificate, or settings, and its worker never connected.
		id, err = req.Node, nil
	}
	if err != nil {
		return nil, err
	}
	now := time.Now().UnixMilli()
	ctx, cancel := s.Writing(ctx)
	defer cancel()
	err = s.Update(ctx, func(tx *store.Tx) error {
		st, connected := s.Tables.NodeStates.Get(tx, id)
		if _, joined := s.Tables.Nodes.Get(tx, id); !connected && !joined {
			return backend.NotFound("node", req.Node)
		}
		if st.Value.GetState() == musterv1.NodeStatus_READY && !req.Force {
			return status.Errorf(codes.FailedPrecondition, "node %q is READY: stop its worker first, or remove it by force (--force)", backend.Clip(req.Node))
		}
		record := &recordv1.Node{CreatedAt: now}
		if e, ok := s.Tables.Nodes.Get(tx, id); ok {
			if e.Value.Removed {
				return backend.NotFound("node", req.Node)
			}
			record = proto.CloneOf(e.Value)
		}
		record.UpdatedAt, record.Removed = now, true
		s.Tables.Nodes.Put(tx, id, record)
		return nil
	})
	if err != nil {
		return nil, s.Fail("remove node", err)
	}
	return &musterv1.RemoveNodeResponse{}, nil
}

// ListPlugins returns the executors and network plugins of all nodes.
func (s *Server) ListPlugins(ctx context.Context, req *musterv1.ListPluginsRequest) (*musterv1.ListPluginsResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	if err := checkLists(req); err != nil {
		return nil, err
	}
	resp := &musterv1.ListPluginsResponse{}
	s.View.Read(func(r *objects.Reader) {
		nodes := nodeIDs(r, req.Nodes)
		r.Nodes("", func(n *objects.Node) bool {
			if !oneOf(nodes, n.ID) {
				return true
			}
			for _, e := range n.State.GetDescription().GetExecutors() {
				if len(req.Names) == 0 || slices.Contains(req.Names, e.Name) {
					resp.Plugins = append(resp.Plugins, &musterv1.NodePlugin{NodeId: n.ID, Hostname: n.Hostname(), Executor: e})
				}
			}
			for _, d := range n.State.GetDescription().GetNetworkDrivers() {
				if len(req.Names) == 0 || slices.Contains(req.Names, d.Name) {
					resp.Plugins = append(resp.Plugins, &musterv1.NodePlugin{NodeId: n.ID, Hostname: n.Hostname(), NetworkDriver: d})
				}
			}
			return true
		})
	})
	return resp, nil
}
