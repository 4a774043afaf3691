package sdk

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// NewServer returns a server of the contract for an executor. Serve calls it. It is for
// programs that serve the contract in their own process.
func NewServer(executor Executor) executorv1.ExecutorServiceServer {
	return &server{executor: executor}
}

// server translates between the contract's messages and an Executor.
type server struct {
	executorv1.UnimplementedExecutorServiceServer
	executor Executor
}

// Whether an unclassified error is temporary, by call. A task that did not start may be
// given up, but one that may be running may not.
const (
	fatal     = false
	temporary = true
)

func (s *server) Describe(ctx context.Context, _ *executorv1.DescribeRequest) (*executorv1.DescribeResponse, error) {
	said, err := s.executor.Describe(ctx)
	if err != nil {
		return nil, wire.ToStatus(err, temporary)
	}
	if said == nil {
		return nil, status.Error(codes.Internal, "the executor described nothing")
	}
	description := proto.CloneOf(said)
	for capability, has := range map[string]bool{
		"logs":    implements[LogStreamer](s.executor),
		"stats":   implements[Statser](s.executor),
		"exec":    implements[Execer](s.executor),
		"update":  implements[Updater](s.executor),
		"observe": implements[Observer](s.executor),
		"volumes": implements[VolumeKeeper](s.executor),
	} {
		if has && !slices.Contains(description.GetCapabilities(), capability) {
			description.Capabilities = append(description.Capabilities, capability)
		}
	}
	slices.Sort(description.Capabilities)
	description.Signals = implements[Signaler](s.executor)
	return description, nil
}

func (s *server) Prepare(ctx context.Context, request *executorv1.PrepareRequest) (*executorv1.PrepareResponse, error) {
	if err := checkTask(request.GetTask()); err != nil {
		return nil, err
	}
	if request.GetTask().GetNetworked() && !implements[Networker](s.executor) {
		return nil, lacks(AcceptsNetwork)
	}
	handle, err := s.executor.Prepare(ctx, request.GetTask(), request.GetHandle())
	if err != nil {
		return nil, wire.ToStatus(err, fatal)
	}
	response := &executorv1.PrepareResponse{Handle: handle}
	if provider, ok := s.executor.(NetworkProvider); ok && request.GetTask().GetNetworked() {
		response.NetworkNamespace, err = provider.Namespace(ctx, Ref{TaskID: request.GetTask().GetId(), Handle: handle})
		if err != nil {
			return nil, wire.ToStatus(err, fatal)
		}
	}
	return response, nil
}

// setNetwork passes the network of a networked task to the executor.
func (s *server) setNetwork(ctx context.Context, request *executorv1.StartRequest) error {
	if !request.GetTask().GetNetworked() {
		return nil
	}
	networker, ok := s.executor.(Networker)
	if !ok {
		return lacks(AcceptsNetwork)
	}
	if request.GetNetwork() == nil {
		return status.Error(codes.InvalidArgument, "the call names no network for a networked task")
	}
	return wire.ToStatus(networker.SetNetwork(ctx, request.GetTask(), request.GetHandle(), request.GetNetwork()), fatal)
}

func (s *server) Start(ctx context.Context, request *executorv1.StartRequest) (*executorv1.StartResponse, error) {
	if err := checkTask(request.GetTask()); err != nil {
		return nil, err
	}
	if err := s.setNetwork(ctx, request); err != nil {
		return nil, err
	}
	started, err := s.executor.Start(ctx, request.GetTask(), request.GetHandle())
	if err != nil {
		return nil, wire.ToStatus(err, fatal)
	}
	if started == nil {
		started = &Started{Handle: request.GetHandle()}
	}
	return &executorv1.StartResponse{Handle: started.Handle, Runtime: started.Status, Ports: started.Ports}, nil
}

func (s *server) Wait(ctx context.Context, request *executorv1.WaitRequest) (*executorv1.WaitResponse, error) {
	if err := checkID(request.GetTaskId()); err != nil {
		return nil, err
	}
	ended, err := s.executor.Wait(ctx, Ref{TaskID: request.GetTaskId(), Handle: request.GetHandle()})
	if err != nil {
		return nil, wire.ToStatus(err, temporary)
	}
	if ended == nil {
		return nil, status.Error(codes.Internal, "the executor did not say how the task ended")
	}
	response := &executorv1.WaitResponse{Runtime: ended.Status, Error: ended.Error}
	if !ended.At.IsZero() {
		response.EndedAt = timestamppb.New(ended.At)
	}
	return response, nil
}

func (s *server) Update(ctx context.Context, request *executorv1.UpdateRequest) (*executorv1.UpdateResponse, error) {
	updater, ok := s.executor.(Updater)
	if !ok {
		return nil, lacks("update")
	}
	if err := checkTask(request.GetTask()); err != nil {
		return nil, err
	}
	handle, err := updater.Update(ctx, request.GetTask(), request.GetHandle())
	if err != nil {
		return nil, wire.ToStatus(err, temporary)
	}
	return &executorv1.UpdateResponse{Handle: handle}, nil
}

func (s *server) Shutdown(ctx context.Context, request *executorv1.ShutdownRequest) (*executorv1.ShutdownResponse, error) {
	if err := checkID(request.GetTaskId()); err != nil {
		return nil, err
	}
	var grace *time.Duration
	if said := request.GetGracePeriod(); said != nil {
		grace = new(max(said.AsDuration(), 0))
	}
	ended, err := s.executor.Shutdown(ctx, Ref{TaskID: request.GetTaskId(), Handle: request.GetHandle()}, grace)
	if err != nil && !IsNotFound(err) {
		return nil, wire.ToStatus(err, temporary)
	}
	return &executorv1.ShutdownResponse{Runtime: ended}, nil
}

func (s *server) Terminate(ctx context.Context, request *executorv1.TerminateRequest) (*executorv1.TerminateResponse, error) {
	if err := checkID(request.GetTaskId()); err != nil {
		return nil, err
	}
	ended, err := s.executor.Terminate(ctx, Ref{TaskID: request.GetTaskId(), Handle: request.GetHandle()})
	if err != nil && !IsNotFound(err) {
		return nil, wire.ToStatus(err, temporary)
	}
	return &executorv1.TerminateResponse{Runtime: ended}, nil
}

func (s *server) Remove(ctx context.Context, request *executorv1.RemoveRequest) (*executorv1.RemoveResponse, error) {
	if err := checkID(request.GetTaskId()); err != nil {
		return nil, err
	}
	err := s.executor.Remove(ctx, Ref{TaskID: request.GetTaskId(), Handle: request.GetHandle()})
	if err != nil && !IsNotFound(err) {
		return nil, wire.ToStatus(err, temporary)
	}
	return &executorv1.RemoveResponse{}, nil
}

func (s *server) List(ctx context.Context, request *executorv1.ListRequest) (*executorv1.ListResponse, error) {
	listed, err := s.executor.List(ctx, request.GetNodeId())
	if err != nil {
		return nil, wire.ToStatus(err, temporary)
	}
	response := &executorv1.ListResponse{Tasks: make([]*executorv1.ListedTask, len(listed))}
	for i, task := range listed {
		response.Tasks[i] = &executorv1.ListedTask{TaskId: task.TaskID, State: task.State, Handle: task.Handle, Runtime: task.Status, NetworkNamespace: task.Namespace}
	}
	return response, nil
}

func (s *server) Logs(request *executorv1.LogsRequest, stream grpc.ServerStreamingServer[executorv1.LogsResponse]) error {
	logs, ok := s.executor.(LogStreamer)
	if !ok {
		return lacks("logs")
	}
	if err := checkID(request.GetTaskId()); err != nil {
		return err
	}
	asked := request.GetOptions()
	options := LogOptions{Follow: asked.GetFollow(), Tail: int(asked.GetTail()), Streams: asked.GetStreams()}
	if since := asked.GetSince(); since != nil {
		options.Since = since.AsTime()
	}
	err := logs.Logs(stream.Context(), Ref{TaskID: request.GetTaskId(), Handle: request.GetHandle()}, options, func(line LogLine) error {
		message := &executorv1.LogsResponse{Stream: line.Stream, Data: line.Data[:min(len(line.Data), MaxLogLine)]}
		if !line.Time.IsZero() {
			message.Timestamp = timestamppb.New(line.Time)
		}
		return stream.Send(message)
	})
	return wire.ToStatus(err, temporary)
}

func (s *server) Observe(request *executorv1.ObserveRequest, stream grpc.ServerStreamingServer[executorv1.ObserveResponse]) error {
	observer, ok := s.executor.(Observer)
	if !ok {
		return lacks("observe")
	}
	if err := checkID(request.GetTaskId()); err != nil {
		return err
	}
	err := observer.Observe(stream.Context(), Ref{TaskID: request.GetTaskId(), Handle: request.GetHandle()}, func(o Observation) error {
		return stream.Send(&executorv1.ObserveResponse{Runtime: o.Status, Message: o.Message, Error: o.Error})
	})
	return wire.ToStatus(err, temporary)
}

func (s *server) Signal(ctx context.Context, request *executorv1.SignalRequest) (*executorv1.SignalResponse, error) {
	signaler, ok := s.executor.(Signaler)
	if !ok {
		return nil, lacks("signals")
	}
	if err := checkID(request.GetTaskId()); err != nil {
		return nil, err
	}
	if request.GetSignal() == "" {
		return nil, wire.ToStatus(SpecFault("signal", errors.New("it is empty")), fatal)
	}
	err := signaler.Signal(ctx, Ref{TaskID: request.GetTaskId(), Handle: request.GetHandle()}, request.GetSignal())
	if err != nil {
		return nil, wire.ToStatus(err, temporary)
	}
	return &executorv1.SignalResponse{}, nil
}

func (s *server) ListVolumes(ctx context.Context, request *executorv1.ListVolumesRequest) (*executorv1.ListVolumesResponse, error) {
	keeper, ok := s.executor.(VolumeKeeper)
	if !ok {
		return nil, lacks("volumes")
	}
	volumes, err := keeper.Volumes(ctx, request.GetNodeId())
	if err != nil {
		return nil, wire.ToStatus(err, temporary)
	}
	return &executorv1.ListVolumesResponse{Volumes: volumes}, nil
}

func (s *server) RemoveVolume(ctx context.Context, request *executorv1.RemoveVolumeRequest) (*executorv1.RemoveVolumeResponse, error) {
	keeper, ok := s.executor.(VolumeKeeper)
	if !ok {
		return nil, lacks("volumes")
	}
	if request.GetName() == "" {
		return nil, wire.ToStatus(SpecFault("name", errors.New("it is empty")), fatal)
	}
	if err := keeper.RemoveVolume(ctx, request.GetName()); err != nil {
		return nil, wire.ToStatus(err, temporary)
	}
	return &executorv1.RemoveVolumeResponse{}, nil
}

func (s *server) Stats(ctx context.Context, request *executorv1.StatsRequest) (*executorv1.StatsResponse, error) {
	statser, ok := s.executor.(Statser)
	if !ok {
		return nil, lacks("stats")
	}
	if err := checkID(request.GetTaskId()); err != nil {
		return nil, err
	}
	stats, err := statser.Stats(ctx, Ref{TaskID: request.GetTaskId(), Handle: request.GetHandle()})
	if err != nil {
		return nil, wire.ToStatus(err, temporary)
	}
	if stats == nil {
		return nil, status.Error(codes.Internal, "the executor did not say what the task uses")
	}
	return &executorv1.StatsResponse{
		At:          timestamppb.New(stats.At),
		Cpu:         durationpb.New(stats.CPU),
		MemoryBytes: stats.MemoryBytes,
		Pids:        stats.PIDs,
	}, nil
}

func (s *server) Exec(stream grpc.BidiStreamingServer[executorv1.ExecRequest, executorv1.ExecResponse]) error {
	execer, ok := s.executor.(Execer)
	if !ok {
		return lacks("exec")
	}
	return serveExec(execer, stream)
}

func implements[T any](executor Executor) bool {
	_, ok := executor.(T)
	return ok
}

// lacks returns the error of a call for an ability that the executor does not have.
func lacks(capability string) error {
	return status.Errorf(codes.Unimplemented, "this executor has no %s", capability)
}

func checkTask(task *Task) error {
	if task == nil {
		return status.Error(codes.InvalidArgument, "the call names no task")
	}
	return checkID(task.GetId())
}

func checkID(id string) error {
	if id == "" {
		return wire.ToStatus(SpecFault("", errors.New("the call names no task")), fatal)
	}
	return nil
}
