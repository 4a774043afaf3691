package apid

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/store"
)

func (c *control) GetNode(ctx context.Context, req *musterv1.GetNodeRequest) (*musterv1.GetNodeResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	m, err := c.nodeMessage(req.Node)
	return &musterv1.GetNodeResponse{Node: m}, err
}

func (c *control) ListNodes(ctx context.Context, req *musterv1.ListNodesRequest) (*musterv1.ListNodesResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	p, err := newPage(req, req.PageSize, req.PageToken)
	if err != nil {
		return nil, err
	}
	labels, err := parseLabels(req.Labels)
	if err != nil {
		return nil, err
	}
	names, prefixes := foldAll(req.Names), foldAll(req.NamePrefixes)
	resp := &musterv1.ListNodesResponse{}
	c.view.Read(func(r *objects.Reader) {
		r.Nodes(p.from, func(n *objects.Node) bool {
			spec, name := n.Spec(), fold(n.Hostname())
			if !oneOf(names, name) || !onePrefix(prefixes, name) || !onePrefix(req.IdPrefixes, n.ID) || !labels.match(spec.Labels) ||
				!oneOf(req.States, n.State.State) || !oneOf(req.Availabilities, spec.Availability) || !oneOf(req.Roles, spec.Role) {
				return true
			}
			if !p.take(n.ID) {
				return false
			}
			resp.Nodes = append(resp.Nodes, r.NodeMessage(n))
			return true
		})
	})
	resp.NextPageToken = p.next()
	return resp, nil
}

func (c *control) UpdateNode(ctx context.Context, req *musterv1.UpdateNodeRequest) (*musterv1.UpdateNodeResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	id, err := c.nodeID(req.Node)
	if err != nil {
		return nil, err
	}
	if err := c.validate.Node(req.Spec); err != nil {
		return nil, err
	}
	now := time.Now().UnixMilli()
	ctx, cancel := c.writing(ctx)
	defer cancel()
	err = c.update(ctx, func(tx *store.Tx) error {
		e, ok := c.tables.Nodes.Get(tx, id)
		if ok && e.Value.Removed {
			return notFound("node", req.Node)
		}
		// A node of which nobody has said anything is at version 0.
		if e.Version != req.Version {
			return stale("node", req.Node, req.Version, e.Version)
		}
		record := &recordv1.Node{CreatedAt: now}
		if ok {
			if proto.Equal(e.Value.Spec, req.Spec) {
				return errAlready
			}
			record = proto.CloneOf(e.Value)
		}
		record.Spec, record.UpdatedAt = req.Spec, now
		c.tables.Nodes.Put(tx, id, record)
		return nil
	})
	if err != nil {
		return nil, c.fail("update node", err)
	}
	m, err := c.nodeMessage(id)
	return &musterv1.UpdateNodeResponse{Node: m}, err
}

func (c *control) RemoveNode(ctx context.Context, req *musterv1.RemoveNodeRequest) (*musterv1.RemoveNodeResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	id, err := c.nodeID(req.Node)
	if _, joined := c.tables.Nodes.Get(c.store.Snapshot(), req.Node); joined && status.Code(err) == codes.NotFound {
		// It has a certificate, or settings, and its worker never connected.
		id, err = req.Node, nil
	}
	if err != nil {
		return nil, err
	}
	now := time.Now().UnixMilli()
	ctx, cancel := c.writing(ctx)
	defer cancel()
	err = c.update(ctx, func(tx *store.Tx) error {
		st, connected := c.tables.NodeStates.Get(tx, id)
		if _, joined := c.tables.Nodes.Get(tx, id); !connected && !joined {
			return notFound("node", req.Node)
		}
		if st.Value.GetState() == musterv1.NodeStatus_READY && !req.Force {
			return status.Errorf(codes.FailedPrecondition, "node %q is READY: stop its worker first, or remove it by force (--force)", clip(req.Node))
		}
		record := &recordv1.Node{CreatedAt: now}
		if e, ok := c.tables.Nodes.Get(tx, id); ok {
			if e.Value.Removed {
				return notFound("node", req.Node)
			}
			record = proto.CloneOf(e.Value)
		}
		record.UpdatedAt, record.Removed = now, true
		c.tables.Nodes.Put(tx, id, record)
		return nil
	})
	if err != nil {
		return nil, c.fail("remove node", err)
	}
	return &musterv1.RemoveNodeResponse{}, nil
}

// ListPlugins returns every executor of every node.
func (c *control) ListPlugins(ctx context.Context, req *musterv1.ListPluginsRequest) (*musterv1.ListPluginsResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	if err := checkLists(req); err != nil {
		return nil, err
	}
	resp := &musterv1.ListPluginsResponse{}
	c.view.Read(func(r *objects.Reader) {
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
			return true
		})
	})
	return resp, nil
}

func (c *control) nodeID(ref string) (string, error) {
	return resolve(c, "node", ref, (*objects.Reader).FindNode, func(_ *objects.Reader, n *objects.Node) string { return n.ID })
}

func (c *control) nodeMessage(ref string) (*musterv1.Node, error) {
	return resolve(c, "node", ref, (*objects.Reader).FindNode, (*objects.Reader).NodeMessage)
}
