package control

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/validate"
)

// mainContainer is the name by which requests mean the container that is not of the group.
const mainContainer = "main"

func (s *Server) ServiceLogs(req *musterv1.ServiceLogsRequest, stream musterv1.ControlService_ServiceLogsServer) error {
	ctx, cancel := s.Streaming(stream.Context())
	defer cancel()
	if err := s.Ready(ctx); err != nil {
		return err
	}
	id, err := s.services.id(ctx, req.Service)
	if err != nil {
		return err
	}
	if err := checkLogOptions(req.Options); err != nil {
		return err
	}
	if err := s.checkContainer(req.Options.GetContainer(), func(r *objects.Reader) (specs []*musterv1.TaskSpec) {
		if service, ok := r.Service(id); ok {
			specs = append(specs, r.StoredSpec(service.Record.TaskDigest))
		}
		r.ServiceTasks(id, "", func(t *objects.Task) bool {
			specs = append(specs, r.StoredSpec(t.Record.SpecDigest))
			return true
		})
		return specs
	}); err != nil {
		return err
	}
	if err := stream.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	all := func(r *objects.Reader) (tasks []*objects.Task, more bool) {
		r.ServiceTasks(id, "", func(t *objects.Task) bool {
			tasks = append(tasks, t)
			return true
		})
		// New tasks come until the service is removed.
		_, more = r.Service(id)
		return tasks, more
	}
	err = s.opt.Logs.Stream(ctx, all, req.Options, func(m *musterv1.LogMessage) error {
		return stream.Send(&musterv1.ServiceLogsResponse{Message: m})
	})
	return s.StreamEnd(ctx, err)
}

func (s *Server) TaskLogs(req *musterv1.TaskLogsRequest, stream musterv1.ControlService_TaskLogsServer) error {
	ctx, cancel := s.Streaming(stream.Context())
	defer cancel()
	if err := s.Ready(ctx); err != nil {
		return err
	}
	got, err := s.GetTask(ctx, &musterv1.GetTaskRequest{Task: req.Task})
	if err != nil {
		return err
	}
	id := got.Task.Id
	if err := checkLogOptions(req.Options); err != nil {
		return err
	}
	if err := s.checkContainer(req.Options.GetContainer(), func(*objects.Reader) []*musterv1.TaskSpec {
		return []*musterv1.TaskSpec{got.Task.Spec}
	}); err != nil {
		return err
	}
	if err := stream.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	one := func(r *objects.Reader) (tasks []*objects.Task, more bool) {
		t, ok := r.Task(id)
		if !ok {
			return nil, false
		}
		// It may still get a node.
		return []*objects.Task{t}, t.NodeID == "" && t.Live()
	}
	err = s.opt.Logs.Stream(ctx, one, req.Options, func(m *musterv1.LogMessage) error {
		return stream.Send(&musterv1.TaskLogsResponse{Message: m})
	})
	return s.StreamEnd(ctx, err)
}

// checkContainer refuses a name that no container of the tasks has. Where a spec is not
// known, the nodes decide.
func (s *Server) checkContainer(name string, of func(r *objects.Reader) []*musterv1.TaskSpec) error {
	if name == "" || name == mainContainer {
		return nil
	}
	known, names := true, []string{mainContainer}
	s.View.Read(func(r *objects.Reader) {
		for _, spec := range of(r) {
			known = known && spec != nil
			for _, c := range spec.GetGroup() {
				names = append(names, c.Name)
			}
		}
	})
	if !known || slices.Contains(names, name) {
		return nil
	}
	slices.Sort(names)
	return status.Errorf(codes.NotFound, "there is no container %q in these tasks; they have %s", backend.Clip(name), strings.Join(slices.Compact(names), ", "))
}

func checkLogOptions(o *musterv1.LogOptions) error {
	if n := len(o.GetStreams()); n > maxValues {
		return validate.Field("options.streams", "has %d values; at most %d are allowed", n, maxValues)
	}
	for i, s := range o.GetStreams() {
		if s != musterv1.LogStream_STDOUT && s != musterv1.LogStream_STDERR {
			return validate.Field(fmt.Sprintf("options.streams[%d]", i), "must be STDOUT or STDERR")
		}
	}
	if s := o.GetSince(); s != nil && s.CheckValid() != nil {
		return validate.Field("options.since", "is not a time: out of range")
	}
	return nil
}
