package apid

import (
	"bytes"
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

func (c *control) GetTask(ctx context.Context, req *musterv1.GetTaskRequest) (*musterv1.GetTaskResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	m, err := resolve(c, "task", req.Task, (*objects.Reader).FindTask, func(r *objects.Reader, t *objects.Task) *musterv1.Task {
		m := r.TaskMessage(t)
		m.Stages = objects.Stages(t)
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
	names, prefixes := foldAll(req.Names), foldAll(req.NamePrefixes)
	resp := &musterv1.ListTasksResponse{}
	c.view.Read(func(r *objects.Reader) {
		services := serviceIDs(r, req.Services)
		nodes := nodeIDs(r, req.Nodes)
		visit := func(t *objects.Task) bool {
			if !oneOf(services, t.ServiceID) || !oneOf(nodes, t.NodeID) || !onePrefix(req.IdPrefixes, t.ID) ||
				!oneOf(req.DesiredStates, t.Desired()) || !oneOf(req.States, t.State()) {
				return true
			}
			if !oneTaskName(r, t, names, prefixes) {
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

// oneTaskName reports whether a task has one of the names, with its id or without,
// and one of the prefixes; none wants all.
func oneTaskName(r *objects.Reader, t *objects.Task, names, prefixes []string) bool {
	if len(names) == 0 && len(prefixes) == 0 {
		return true
	}
	source, name := fold(r.TaskSource(t)), fold(r.TaskName(t))
	return (len(names) == 0 || slices.Contains(names, source) || slices.Contains(names, name)) && onePrefix(prefixes, name)
}

// RemoveTask raises the desired state of a task, which is all that its owner, the
// orchestrator, needs to stop and to replace it.
func (c *control) RemoveTask(ctx context.Context, req *musterv1.RemoveTaskRequest) (*musterv1.RemoveTaskResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	key, err := resolve(c, "task", req.Task, (*objects.Reader).FindTask, func(_ *objects.Reader, t *objects.Task) string {
		return state.TaskKey(t.ServiceID, t.Record.Slot, t.Record.NodeId, t.ID)
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.writing(ctx)
	defer cancel()
	err = c.update(ctx, func(tx *store.Tx) error {
		e, ok := c.tables.Tasks.Get(tx, key)
		if !ok {
			return notFound("task", req.Task)
		}
		if e.Value.DesiredState >= musterv1.TaskState_REMOVE {
			return errAlready
		}
		task := proto.CloneOf(e.Value)
		task.DesiredState, task.DesiredAt, task.Reason = musterv1.TaskState_REMOVE, max(time.Now().UnixMilli(), task.CreatedAt), "removed by a user"
		c.tables.Tasks.Put(tx, key, task)
		return nil
	})
	if err != nil {
		return nil, c.fail("remove task", err)
	}
	return &musterv1.RemoveTaskResponse{}, nil
}

// serviceIDs resolves ids and names for a filter. What resolves to nothing
// stays as it is: tasks outlive their service, under its id.
func serviceIDs(r *objects.Reader, refs []string) []string {
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
func nodeIDs(r *objects.Reader, refs []string) []string {
	if len(refs) == 0 {
		return nil
	}
	ids := slices.Clone(refs)
	names := foldAll(refs)
	r.Nodes("", func(n *objects.Node) bool {
		if slices.Contains(names, fold(n.Hostname())) {
			ids = append(ids, n.ID)
		}
		return true
	})
	return ids
}
