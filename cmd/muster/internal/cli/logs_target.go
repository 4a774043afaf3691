package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// logs shows the output of whatever a user names: a service or a task.
func (c *CLI) logs() *cobra.Command {
	return c.logsCommand(&cobra.Command{
		Use: "logs SERVICE|TASK", Short: "Show the output of a service's tasks or of one task",
		Long: `Show the output of a service's tasks or of one task.

Name a service by its name, its id or a prefix of the id, and a task by its id, a prefix of it, or its name as "muster ps"
and "muster logs" show it: web.1 is the current task of slot 1, web.1.0k2f one of its tasks.`,
		Example: `  muster logs web
  muster logs -f --tail 20 web.1
  muster logs --container proxy web
  muster logs 0k2f`,
	}, func(ctx context.Context, client api, target string, options *musterv1.LogOptions) (grpc.ClientStream, logSource, error) {
		service, task, err := logTarget(ctx, client, target)
		switch {
		case err != nil:
			return nil, nil, err
		case task != nil:
			return openTaskLogs(ctx, client, task.Id, options)
		}
		return openServiceLogs(ctx, client, service.Id, options)
	})
}

// logTarget finds the one service or task that a user means.
func logTarget(ctx context.Context, client api, target string) (*musterv1.Service, *musterv1.Task, error) {
	found, err := client.GetService(ctx, &musterv1.GetServiceRequest{Service: target})
	if err != nil && status.Code(err) != codes.NotFound {
		return nil, nil, err
	}
	service := found.GetService()
	if service != nil && (service.Id == target || strings.EqualFold(service.Spec.GetName(), target)) {
		return service, nil, nil
	}
	// The name of a task may end with the names of its container and its node.
	name, _, _ := strings.Cut(target, "@")
	name, _, _ = strings.Cut(name, "/")
	got, err := client.GetTask(ctx, &musterv1.GetTaskRequest{Task: name})
	if err != nil && status.Code(err) != codes.NotFound {
		return nil, nil, err
	}
	switch task := got.GetTask(); {
	case task != nil && service != nil:
		return nil, nil, usage("%q is a prefix of the ids of service %s and of task %s: give more of the id", target, service.Spec.GetName(), task.Name)
	case task != nil:
		return nil, task, nil
	case service != nil:
		return service, nil, nil
	}
	task, err := taskNamed(ctx, client, name)
	if err == nil && task == nil {
		err = noSuchTarget(target)
	}
	return nil, task, err
}

// taskNamed finds a task by the name that people are shown: "web.1", or "web.1.0k2f"
// with the beginning of its id. Of several it returns the current one. It returns nil
// if there is none.
func taskNamed(ctx context.Context, client api, name string) (*musterv1.Task, error) {
	// A service's name may have dots, and so may the name of a host.
	for end := strings.LastIndexByte(name, '.'); end > 0; end = strings.LastIndexByte(name[:end], '.') {
		found, err := client.GetService(ctx, &musterv1.GetServiceRequest{Service: name[:end]})
		if status.Code(err) == codes.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		tasks, err := readAll(&musterv1.ListTasksRequest{Services: []string{found.Service.Id}, PageSize: pageSize}, func(req *musterv1.ListTasksRequest) (page[*musterv1.Task], error) {
			return taskKind().list(client, ctx, req)
		})
		if err != nil {
			return nil, err
		}
		nodes, err := readAll(nodeKind().request(), func(req *musterv1.ListNodesRequest) (page[*musterv1.Node], error) {
			return nodeKind().list(client, ctx, req)
		})
		if err != nil {
			return nil, err
		}
		hosts := hostsOf(nodes)
		var current *musterv1.Task
		for _, t := range tasks {
			if named(t, name, hosts) && (current == nil || newer(t, current)) {
				current = t
			}
		}
		return current, nil
	}
	return nil, nil
}

// named reports whether a name means a task. People are shown hosts by name, and some
// places show the id of a node.
func named(t *musterv1.Task, name string, hosts map[string]string) bool {
	for _, shown := range []string{taskName(t, hosts), taskName(t, nil)} {
		rest, ok := cutPrefixFold(name, shown)
		if ok && (rest == "" || rest[0] == '.' && strings.HasPrefix(t.Id, strings.ToLower(rest[1:]))) {
			return true
		}
	}
	return false
}

func cutPrefixFold(s, prefix string) (rest string, ok bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// newer reports whether a task is more current than another of the same name: one that
// should run before one that should not, and then the one that was made last.
func newer(t, than *musterv1.Task) bool {
	if t.DesiredState != than.DesiredState {
		return t.DesiredState < than.DesiredState
	}
	return t.Meta.GetCreatedAt().AsTime().After(than.Meta.GetCreatedAt().AsTime())
}

func noSuchTarget(target string) error {
	s, err := status.Newf(codes.NotFound, "there is no service and no task %q: `muster service ls` and `muster ps` show what there is", target).
		WithDetails(&errdetails.ResourceInfo{ResourceType: "service or task", ResourceName: target})
	if err != nil {
		return status.Errorf(codes.NotFound, "there is no service and no task %q", target)
	}
	return s.Err()
}
