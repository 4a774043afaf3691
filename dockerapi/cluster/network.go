package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dockerapi/convert"
	"github.com/musterhq/muster/dockerapi/server"
)

func (a *API) networkRoutes(s *server.Server) {
	s.Handle("GET /networks", a.listNetworks)
	s.Handle("POST /networks/create", a.createNetwork)
	s.Handle("POST /networks/prune", a.pruneNetworks)
	s.Handle("GET /networks/{id}", a.getNetwork)
	s.Handle("DELETE /networks/{id}", a.removeNetwork)
}

// predefined are the networks that need not be created: their names are also their ids.
var predefined = []string{"host", "none"}

func predefinedNetwork(name string) network.Network {
	driver := name
	if name == "none" {
		driver = "null"
	}
	return network.Network{
		Name: name, ID: name, Scope: convert.ScopeSwarm, Driver: driver, EnableIPv4: true,
		IPAM: network.IPAM{Driver: "default", Config: []network.IPAMConfig{}}, Options: map[string]string{}, Labels: map[string]string{},
	}
}

func (a *API) listNetworks(w http.ResponseWriter, r *http.Request) error {
	f, err := server.ReadFilters(r, "id", "name", "label", "driver", "scope", "type", "dangling")
	if err != nil {
		return err
	}
	dangling, err := f.Flag("dangling")
	if err != nil {
		return err
	}
	for _, t := range f["type"] {
		if t != "custom" && t != "builtin" {
			return server.Errorf(http.StatusBadRequest, "invalid filter 'type=%s'", t)
		}
	}
	all, err := a.networks(r.Context(), &musterv1.ListNetworksRequest{Labels: f.Labels("label")})
	if err != nil {
		return err
	}
	var unused map[string]bool
	if dangling != nil {
		if unused, err = a.unused(r.Context(), all); err != nil {
			return err
		}
	}
	out := []any{}
	for _, n := range all {
		if d := convert.DockerNetwork(n); matches(f, d) && (dangling == nil || unused[n.GetId()] == *dangling) {
			out = append(out, d)
		}
	}
	if a.Engine == nil {
		return server.WriteJSON(w, http.StatusOK, out)
	}
	// Those of the Engine's own swarm, if it has one, are not this cluster's.
	var local []map[string]any
	path := "/networks"
	if raw := r.URL.RawQuery; raw != "" {
		path += "?" + raw
	}
	if err := a.Engine.Get(r.Context(), path, &local); err != nil {
		return err
	}
	for _, n := range local {
		if n["Scope"] != convert.ScopeSwarm {
			out = append(out, n)
		}
	}
	return server.WriteJSON(w, http.StatusOK, out)
}

// matches tells whether a network passes the filters that the control API does not know.
// Docker looks for a part of the name.
func matches(f server.Filters, n network.Network) bool {
	some := func(name string, match func(want string) bool) bool {
		return len(f[name]) == 0 || slices.ContainsFunc(f[name], match)
	}
	return some("id", func(want string) bool { return strings.HasPrefix(n.ID, want) }) &&
		some("name", func(want string) bool { return strings.Contains(n.Name, want) }) &&
		some("driver", func(want string) bool { return n.Driver == want }) &&
		some("scope", func(want string) bool { return n.Scope == want }) &&
		some("type", func(want string) bool { return want == "custom" })
}

// unused returns which networks no service uses.
func (a *API) unused(ctx context.Context, all []*musterv1.Network) (map[string]bool, error) {
	out := map[string]bool{}
	for _, n := range all {
		resp, err := a.Client.GetNetwork(ctx, &musterv1.GetNetworkRequest{Network: n.GetId()})
		if err != nil {
			return nil, err
		}
		out[n.GetId()] = len(resp.GetNetwork().GetStatus().GetServiceIds()) == 0 && !n.GetSpec().GetIngress()
	}
	return out, nil
}

func (a *API) createNetwork(w http.ResponseWriter, r *http.Request) error {
	var in network.CreateRequest
	body, err := keep(r)
	if err != nil {
		return err
	}
	if err := server.Decode(r, &in); err != nil {
		return err
	}
	// As in Docker the driver decides whose network it is, unless the scope is given.
	if in.Scope != convert.ScopeSwarm && !in.Ingress && (in.Scope == "local" || in.Driver == "" || in.Driver != "overlay" && in.Driver != "cni") {
		if a.Engine == nil {
			return server.Errorf(http.StatusBadRequest, "driver %q: the network would be one of a single Engine, and none is configured (--engine); create one of the cluster with --driver overlay, or with --scope swarm", in.Driver)
		}
		a.Engine.ServeHTTP(w, body())
		return nil
	}
	spec, err := convert.NetworkSpec(in)
	if err != nil {
		return server.BadRequest(err)
	}
	resp, err := call(r.Context(), a.Client.CreateNetwork, &musterv1.CreateNetworkRequest{Spec: spec}, "network", spec.Name)
	if err != nil {
		return err
	}
	return server.WriteJSON(w, http.StatusCreated, network.CreateResponse{ID: resp.GetNetwork().GetId()})
}

// network returns a network of the cluster.
func (a *API) network(ctx context.Context, name string) (*musterv1.Network, error) {
	resp, err := call(ctx, a.Client.GetNetwork, &musterv1.GetNetworkRequest{Network: name}, "network", name)
	return resp.GetNetwork(), err
}

// notFound tells whether an error says that there is no such object.
func notFound(err error) bool {
	var e *server.Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

func (a *API) getNetwork(w http.ResponseWriter, r *http.Request) error {
	name, scope := r.PathValue("id"), r.URL.Query().Get("scope")
	if scope != "local" {
		n, err := a.network(r.Context(), name)
		switch {
		case err == nil:
			out := network.Inspect{Network: convert.DockerNetwork(n), Containers: map[string]network.EndpointResource{}}
			if server.Bool(r, "verbose") {
				if err := a.describe(r.Context(), n, &out); err != nil {
					return err
				}
			}
			return server.WriteJSON(w, http.StatusOK, out)
		case !notFound(err):
			return err
		case slices.Contains(predefined, name) && (a.Engine == nil || scope == convert.ScopeSwarm):
			return server.WriteJSON(w, http.StatusOK, network.Inspect{Network: predefinedNetwork(name), Containers: map[string]network.EndpointResource{}})
		}
	}
	if a.Engine != nil && scope != convert.ScopeSwarm {
		a.Engine.ServeHTTP(w, r)
		return nil
	}
	return server.Errorf(http.StatusNotFound, "network %s not found", name)
}

// describe adds the nodes and services of a network.
func (a *API) describe(ctx context.Context, n *musterv1.Network, out *network.Inspect) error {
	nodes, err := a.nodes(ctx, &musterv1.ListNodesRequest{})
	if err != nil {
		return err
	}
	has := map[string]bool{}
	for _, b := range n.GetStatus().GetBlocks() {
		has[b.GetNodeId()] = true
	}
	for _, node := range nodes {
		if has[node.GetId()] {
			ip, _ := netip.ParseAddr(node.GetDescription().GetDataPath().GetAddress())
			out.Peers = append(out.Peers, network.PeerInfo{Name: node.GetId(), IP: ip})
		}
	}
	out.Services = map[string]network.ServiceInfo{}
	for _, id := range n.GetStatus().GetServiceIds() {
		s, err := a.service(ctx, id)
		if notFound(err) {
			continue
		} else if err != nil {
			return err
		}
		tasks, err := a.tasks(ctx, &musterv1.ListTasksRequest{Services: []string{id}, DesiredStates: []musterv1.TaskState{musterv1.TaskState_RUNNING}})
		if err != nil {
			return err
		}
		info := network.ServiceInfo{Ports: []string{}, Tasks: []network.Task{}}
		for _, v := range s.GetEndpoint().GetVirtualIps() {
			if p, err := netip.ParsePrefix(v.GetAddress()); err == nil && v.GetNetworkId() == n.GetId() {
				info.VIP = p.Addr()
			}
		}
		for _, p := range s.GetEndpoint().GetPorts() {
			info.Ports = append(info.Ports, fmt.Sprintf("Target: %d, Publish: %d", p.GetTargetPort(), p.GetPublishedPort()))
		}
		for _, t := range tasks {
			for _, at := range convert.Attachments(t) {
				if at.GetNetworkId() != n.GetId() || len(at.GetAddresses()) == 0 {
					continue
				}
				ip, _ := netip.ParseAddr(at.GetAddresses()[0])
				info.Tasks = append(info.Tasks, network.Task{Name: t.GetName(), EndpointID: t.GetId(), EndpointIP: ip, Info: map[string]string{"Host IP": t.GetNodeId()}})
			}
		}
		out.Services[s.GetSpec().GetName()] = info
	}
	return nil
}

func (a *API) removeNetwork(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("id")
	_, err := call(r.Context(), a.Client.RemoveNetwork, &musterv1.RemoveNetworkRequest{Network: name}, "network", name)
	if notFound(err) && a.Engine != nil {
		a.Engine.ServeHTTP(w, r)
		return nil
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *API) pruneNetworks(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	f, err := server.ReadFilters(r, "until", "label", "label!")
	if err != nil {
		return err
	}
	report := network.PruneReport{NetworksDeleted: []string{}}
	labels := f.Labels("label")
	for _, l := range f["label!"] {
		key, value, given := strings.Cut(l, "=")
		if given {
			labels = append(labels, key+"!="+value)
		} else {
			labels = append(labels, "!"+key)
		}
	}
	all, err := a.networks(ctx, &musterv1.ListNetworksRequest{Labels: labels})
	if err != nil {
		return err
	}
	if all, err = olderThan(all, f["until"]); err != nil {
		return err
	}
	unused, err := a.unused(ctx, all)
	if err != nil {
		return err
	}
	for _, n := range all {
		if !unused[n.GetId()] {
			continue
		}
		// A service may have begun to use it meanwhile: it stays then.
		if _, err := a.Client.RemoveNetwork(ctx, &musterv1.RemoveNetworkRequest{Network: n.GetId()}); err == nil {
			report.NetworksDeleted = append(report.NetworksDeleted, n.GetSpec().GetName())
		}
	}
	if a.Engine != nil {
		var local network.PruneReport
		if err := a.Engine.Post(ctx, "/networks/prune?"+r.URL.RawQuery, &local); err != nil {
			return err
		}
		report.NetworksDeleted = append(report.NetworksDeleted, local.NetworksDeleted...)
	}
	return server.WriteJSON(w, http.StatusOK, report)
}
