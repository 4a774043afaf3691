package control

import (
	"bytes"
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

func (s *Server) taskKind() *kind[*recordv1.Task, *objects.Task, *musterv1.Task] {
	return &kind[*recordv1.Task, *objects.Task, *musterv1.Task]{
		Backend: s.Backend, name: "task", table: s.Tables.Tasks,
		find: (*objects.Reader).FindTask, ascend: (*objects.Reader).Tasks, message: (*objects.Reader).TaskMessage,
		// Users know a task by its name with its id, or without.
		names: func(r *objects.Reader, t *objects.Task) []string { return []string{r.TaskSource(t), r.TaskName(t)} },
		key: func(t *objects.Task) string {
			return state.TaskKey(t.ServiceID, t.Record.Slot, t.Record.NodeId, t.ID)
		},
	}
}

// GetTask returns one task, with the stages on its way.
func (s *Server) GetTask(ctx context.Context, req *musterv1.GetTaskRequest) (*musterv1.GetTaskResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	m, err := resolve(ctx, s.tasks, req.Task, func(r *objects.Reader, t *objects.Task) *musterv1.Task {
		m := r.TaskMessage(t)
		m.Stages = objects.Stages(t)
		return m
	})
	return &musterv1.GetTaskResponse{Task: m}, err
}

// ListTasks returns a page of tasks.
func (s *Server) ListTasks(ctx context.Context, req *musterv1.ListTasksRequest) (*musterv1.ListTasksResponse, error) {
	tasks, next, err := s.tasks.list(ctx, req, func(r *objects.Reader) selection[*objects.Task] {
		services, nodes := serviceIDs(r, req.Services), nodeIDs(r, req.Nodes)
		chosen := selection[*objects.Task]{keep: func(t *objects.Task) bool {
			return oneOf(services, t.ServiceID) && oneOf(nodes, t.NodeID) && oneOf(req.DesiredStates, t.Desired()) && oneOf(req.States, t.State()) &&
				(!req.UpToDate || upToDate(r, t))
		}}
		if len(services) == 1 {
			chosen.ascend = func(from string, fn func(*objects.Task) bool) { r.ServiceTasks(services[0], from, fn) }
		}
		return chosen
	})
	if err != nil {
		return nil, err
	}
	return &musterv1.ListTasksResponse{Tasks: tasks, NextPageToken: next}, nil
}

// upToDate reports whether a task was made of its service's current task spec.
func upToDate(r *objects.Reader, t *objects.Task) bool {
	service, ok := r.Service(t.ServiceID)
	return ok && bytes.Equal(t.Record.SpecDigest, service.Record.TaskDigest)
}

// RemoveTask raises the desired state of a task. The task's owner, the orchestrator,
// then stops and replaces it.
func (s *Server) RemoveTask(ctx context.Context, req *musterv1.RemoveTaskRequest) (*musterv1.RemoveTaskResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	_, err := s.tasks.edit(ctx, "remove", req.Task, func(tx *store.Tx, key string) error {
		e, ok := s.Tables.Tasks.Get(tx, key)
		if !ok {
			return backend.NotFound("task", req.Task)
		}
		if e.Value.DesiredState >= musterv1.TaskState_REMOVE {
			return backend.ErrNoChange
		}
		task := proto.CloneOf(e.Value)
		task.DesiredState, task.DesiredAt, task.Reason = musterv1.TaskState_REMOVE, max(time.Now().UnixMilli(), task.CreatedAt), "removed by a user"
		s.Tables.Tasks.Put(tx, key, task)
		return nil
	})
	if err != nil {
		return nil, err
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
