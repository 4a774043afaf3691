package apid

import (
	"bytes"
	"context"
	"slices"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/view"
)

func (c *control) GetTask(ctx context.Context, req *musterv1.GetTaskRequest) (*musterv1.GetTaskResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	m, err := resolve(c, "task", req.Task, (*view.Reader).FindTask, func(r *view.Reader, t *view.Task) *musterv1.Task {
		m := r.TaskMessage(t)
		m.Stages = view.Stages(t)
		return m
	})
	return &musterv1.GetTaskResponse{Task: m}, err
}

func (c *control) ListTasks(ctx context.Context, req *musterv1.ListTasksRequest) (*musterv1.ListTasksResponse, error) {
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
	resp := &musterv1.ListTasksResponse{}
	c.view.Read(func(r *view.Reader) {
		services := serviceIDs(r, req.Services)
		nodes := nodeIDs(r, req.Nodes)
		visit := func(t *view.Task) bool {
			if !oneOf(services, t.ServiceID) || !oneOf(nodes, t.NodeID) || !onePrefix(req.IdPrefixes, t.ID) ||
				!oneOf(req.DesiredStates, t.Desired()) || !oneOf(req.States, t.State()) {
				return true
			}
			if len(labels) > 0 || req.UpToDate {
				s, ok := r.Service(t.ServiceID)
				if !ok || !labels.match(s.Record.GetSpec().GetLabels()) ||
					(req.UpToDate && !bytes.Equal(t.Record.SpecDigest, s.Record.TaskDigest)) {
					return true
				}
			}
			if !p.take(t.ID) {
				return false
			}
			resp.Tasks = append(resp.Tasks, r.TaskMessage(t))
			return true
		}
		if len(services) == 1 {
			r.ServiceTasks(services[0], p.from, visit)
		} else {
			r.Tasks(p.from, visit)
		}
	})
	resp.NextPageToken = p.next()
	return resp, nil
}

// serviceIDs resolves ids and names for a filter. What resolves to nothing
// stays as it is: tasks outlive their service, under its id.
func serviceIDs(r *view.Reader, refs []string) []string {
	var ids []string
	for _, ref := range refs {
		id := ref
		if s := r.ServiceByName(ref); s != nil {
			if _, isID := r.Service(ref); !isID {
				id = s.ID
			}
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// nodeIDs does the same for nodes; a host name may stand for several.
func nodeIDs(r *view.Reader, refs []string) []string {
	if len(refs) == 0 {
		return nil
	}
	ids := slices.Clone(refs)
	names := foldAll(refs)
	r.Nodes("", func(n *view.Node) bool {
		if slices.Contains(names, fold(n.Hostname())) {
			ids = append(ids, n.ID)
		}
		return true
	})
	return ids
}
