package cluster

import (
	"context"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dockerapi/convert"
	"github.com/musterhq/muster/dockerapi/server"
)

func (a *API) nodeRoutes(s *server.Server) {
	s.Handle("GET /nodes", a.listNodes)
	s.Handle("GET /nodes/{id}", a.getNode)
	s.Handle("DELETE /nodes/{id}", a.removeNode)
	s.Handle("POST /nodes/{id}/update", a.updateNode)
}

func (a *API) listNodes(w http.ResponseWriter, r *http.Request) error {
	f, err := server.ReadFilters(r, "id", "name", "label", "node.label", "role", "membership")
	if err != nil {
		return err
	}
	req := &musterv1.ListNodesRequest{NamePrefixes: f["name"], IdPrefixes: f["id"], Labels: f.Labels("node.label")}
	for _, word := range f["role"] {
		role, err := convert.NodeRole(word)
		if err != nil {
			return server.Errorf(http.StatusBadRequest, "Invalid role filter: '%s'", word)
		}
		req.Roles = append(req.Roles, role)
	}
	members := len(f["membership"]) == 0
	for _, word := range f["membership"] {
		switch strings.ToLower(word) {
		case "accepted":
			members = true
		case "pending":
		default:
			return server.Errorf(http.StatusBadRequest, "Invalid membership filter: '%s'", word)
		}
	}
	var nodes []*musterv1.Node
	if members {
		if nodes, err = a.nodes(r.Context(), req); err != nil {
			return err
		}
	}
	nodes = slices.DeleteFunc(nodes, func(n *musterv1.Node) bool { return !f.MatchLabels("label", n.GetDescription().GetLabels()) })
	root, err := a.root(r.Context())
	if err != nil {
		return err
	}
	return server.WriteJSON(w, http.StatusOK, list(nodes, func(n *musterv1.Node) swarm.Node { return convert.DockerNode(n, root.of(n.GetId())) }))
}

// nodes lists all that pass a request.
func (a *API) nodes(ctx context.Context, req *musterv1.ListNodesRequest) ([]*musterv1.Node, error) {
	req.PageSize = pageSize
	return pages(func(token string) ([]*musterv1.Node, string, error) {
		req.PageToken = token
		resp, err := a.Client.ListNodes(ctx, req)
		return resp.GetNodes(), resp.GetNextPageToken(), err
	})
}

// node returns a node; "self" is the one that this daemon stands for.
func (a *API) node(ctx context.Context, name string) (*musterv1.Node, error) {
	if name == "self" {
		if name = a.self(ctx); name == "" {
			return nil, server.Errorf(http.StatusNotFound, "node self not found: dockerapid does not run on a node; give the node's name, or set dockerapid's --node")
		}
	}
	resp, err := call(ctx, a.Client.GetNode, &musterv1.GetNodeRequest{Node: name}, "node", name)
	return resp.GetNode(), err
}

// self returns the id of the node that this daemon stands for: the one that was named, or
// else the only one that has this machine's host name; "" if there is none.
func (a *API) self(ctx context.Context) string {
	if a.Node != "" {
		resp, err := a.Client.GetNode(ctx, &musterv1.GetNodeRequest{Node: a.Node})
		if err != nil {
			return ""
		}
		return resp.GetNode().GetId()
	}
	host, err := os.Hostname()
	if err != nil {
		return ""
	}
	nodes, err := a.nodes(ctx, &musterv1.ListNodesRequest{Names: []string{host}})
	if err != nil || len(nodes) != 1 {
		return ""
	}
	return nodes[0].GetId()
}

func (a *API) getNode(w http.ResponseWriter, r *http.Request) error {
	n, err := a.node(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	root, err := a.root(r.Context())
	if err != nil {
		return err
	}
	return server.WriteJSON(w, http.StatusOK, convert.DockerNode(n, root.of(n.GetId())))
}

func (a *API) updateNode(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("id")
	at, err := version(r, "node")
	if err != nil {
		return err
	}
	var in swarm.NodeSpec
	if err := server.Decode(r, &in); err != nil {
		return err
	}
	spec, err := convert.NodeSpec(in)
	if err != nil {
		return server.BadRequest(err)
	}
	if _, err := call(r.Context(), a.Client.UpdateNode, &musterv1.UpdateNodeRequest{Node: name, Version: at, Spec: spec}, "node", name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (a *API) removeNode(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("id")
	if _, err := call(r.Context(), a.Client.RemoveNode, &musterv1.RemoveNodeRequest{Node: name, Force: server.Bool(r, "force")}, "node", name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}
