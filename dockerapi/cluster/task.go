package cluster

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dockerapi/convert"
	"github.com/musterhq/muster/dockerapi/server"
)

func (a *API) taskRoutes(s *server.Server) {
	s.Handle("GET /tasks", a.listTasks)
	s.Handle("GET /tasks/{id}", a.getTask)
	s.Stream("GET /tasks/{id}/logs", a.taskLogs)
}

func (a *API) listTasks(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	f, err := server.ReadFilters(r, "id", "name", "label", "service", "node", "desired-state", "_up-to-date", "runtime")
	if err != nil {
		return err
	}
	req := &musterv1.ListTasksRequest{NamePrefixes: f["name"], IdPrefixes: f["id"], Labels: f.Labels("label"), UpToDate: len(f["_up-to-date"]) > 0}
	for _, name := range f["service"] {
		s, err := a.service(ctx, name)
		if err != nil {
			return err
		}
		req.Services = append(req.Services, s.GetId())
	}
	for _, name := range f["node"] {
		n, err := a.node(ctx, name)
		if err != nil {
			return err
		}
		req.Nodes = append(req.Nodes, n.GetId())
	}
	for _, word := range f["desired-state"] {
		state, ok := musterv1.TaskState_value[strings.ToUpper(word)]
		if !ok || state == 0 {
			return server.Errorf(http.StatusBadRequest, "Invalid desired-state filter: '%s'", word)
		}
		req.DesiredStates = append(req.DesiredStates, musterv1.TaskState(state))
	}
	var tasks []*musterv1.Task
	if runtimes := f["runtime"]; len(runtimes) == 0 || slices.Contains(runtimes, string(swarm.RuntimeContainer)) {
		if tasks, err = a.tasks(ctx, req); err != nil {
			return err
		}
	}
	networks, err := a.networksOf(ctx, tasks...)
	if err != nil {
		return err
	}
	return server.WriteJSON(w, http.StatusOK, list(tasks, func(t *musterv1.Task) swarm.Task { return convert.DockerTask(t, networks) }))
}

// tasks lists all that pass a request.
func (a *API) tasks(ctx context.Context, req *musterv1.ListTasksRequest) ([]*musterv1.Task, error) {
	req.PageSize = pageSize
	return pages(func(token string) ([]*musterv1.Task, string, error) {
		req.PageToken = token
		resp, err := a.Client.ListTasks(ctx, req)
		return resp.GetTasks(), resp.GetNextPageToken(), err
	})
}

// networksOf returns the cluster's networks by id if a task is on one.
func (a *API) networksOf(ctx context.Context, tasks ...*musterv1.Task) (map[string]*musterv1.Network, error) {
	out := map[string]*musterv1.Network{}
	if !slices.ContainsFunc(tasks, func(t *musterv1.Task) bool {
		return len(t.GetNetworks()) > 0 || len(t.GetStatus().GetNetworks()) > 0
	}) {
		return out, nil
	}
	networks, err := a.networks(ctx, &musterv1.ListNetworksRequest{})
	for _, n := range networks {
		out[n.GetId()] = n
	}
	return out, err
}

// networks lists all that pass a request.
func (a *API) networks(ctx context.Context, req *musterv1.ListNetworksRequest) ([]*musterv1.Network, error) {
	req.PageSize = pageSize
	return pages(func(token string) ([]*musterv1.Network, string, error) {
		req.PageToken = token
		resp, err := a.Client.ListNetworks(ctx, req)
		return resp.GetNetworks(), resp.GetNextPageToken(), err
	})
}

func (a *API) task(ctx context.Context, name string) (*musterv1.Task, error) {
	resp, err := call(ctx, a.Client.GetTask, &musterv1.GetTaskRequest{Task: name}, "task", name)
	return resp.GetTask(), err
}

func (a *API) getTask(w http.ResponseWriter, r *http.Request) error {
	t, err := a.task(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	networks, err := a.networksOf(r.Context(), t)
	if err != nil {
		return err
	}
	return server.WriteJSON(w, http.StatusOK, convert.DockerTask(t, networks))
}
