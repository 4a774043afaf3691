// Package contractv1 adapts executors that speak version 1 of the executor contract,
// muster.executor.v1, to what the worker asks of executors.
package contractv1

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
	"github.com/musterhq/muster/workerd/executor"
)

// service is the executor service of the contract, wherever it is.
type service interface {
	Describe(context.Context, *executorv1.DescribeRequest) (*executorv1.DescribeResponse, error)
	Prepare(context.Context, *executorv1.PrepareRequest) (*executorv1.PrepareResponse, error)
	Start(context.Context, *executorv1.StartRequest) (*executorv1.StartResponse, error)
	Wait(context.Context, *executorv1.WaitRequest) (*executorv1.WaitResponse, error)
	Update(context.Context, *executorv1.UpdateRequest) (*executorv1.UpdateResponse, error)
	Shutdown(context.Context, *executorv1.ShutdownRequest) (*executorv1.ShutdownResponse, error)
	Terminate(context.Context, *executorv1.TerminateRequest) (*executorv1.TerminateResponse, error)
	Remove(context.Context, *executorv1.RemoveRequest) (*executorv1.RemoveResponse, error)
	List(context.Context, *executorv1.ListRequest) (*executorv1.ListResponse, error)
	Signal(context.Context, *executorv1.SignalRequest) (*executorv1.SignalResponse, error)
	ListVolumes(context.Context, *executorv1.ListVolumesRequest) (*executorv1.ListVolumesResponse, error)
	RemoveVolume(context.Context, *executorv1.RemoveVolumeRequest) (*executorv1.RemoveVolumeResponse, error)
	logs(context.Context, *executorv1.LogsRequest, func(*executorv1.LogsResponse) error) error
	observe(context.Context, *executorv1.ObserveRequest, func(*executorv1.ObserveResponse) error) error
}

// adapter is an executor that speaks the contract.
type adapter struct{ service service }

var (
	_ executor.Executor     = (*adapter)(nil)
	_ executor.VolumeKeeper = (*adapter)(nil)
)

// ErrorOf returns an error of the contract in the worker's terms. The error of a call
// that its caller has ended decides nothing, and reading it would cost much.
func ErrorOf(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	var e *wire.Error
	if !errors.As(wire.FromStatus(err), &e) {
		return err
	}
	return &executor.Error{
		Code: e.Code, Temporary: e.Temporary, RetryAfter: e.RetryAfter, BlameNode: e.Blame == wire.BlameNode, Err: e.Err,
	}
}

func taskOf(t *executor.Task) *executorv1.Task {
	return &executorv1.Task{
		Id: t.ID, Name: t.Name, ServiceId: t.ServiceID, ServiceName: t.ServiceName, Slot: t.Slot, NodeId: t.NodeID,
		ServiceLabels: t.ServiceLabels, Spec: t.Spec, Ports: t.Ports, Networked: t.Networked,
		SharesNetworkOf: t.SharesNetworkOf, Files: filesOf(t.Files),
	}
}

func filesOf(files []executor.File) []*executorv1.TaskFile {
	all := make([]*executorv1.TaskFile, len(files))
	for i, f := range files {
		all[i] = &executorv1.TaskFile{
			Source: f.Source, Target: f.Target, Uid: f.UID, Gid: f.GID, Mode: uint32(f.Mode.Perm()), Secret: f.Secret,
		}
	}
	return all
}

func (a *adapter) Describe(ctx context.Context) (*executor.About, error) {
	res, err := a.service.Describe(ctx, &executorv1.DescribeRequest{})
	if err != nil {
		return nil, ErrorOf(ctx, err)
	}
	return &executor.About{
		Name: res.GetName(), Version: res.GetVersion(), Healthy: res.GetHealthy(), Message: res.GetMessage(),
		Kinds: res.GetKinds(), Capabilities: res.GetCapabilities(), PayloadSchema: res.GetPayloadSchema(),
		Resources: res.GetResources(), Platform: res.GetPlatform(), TaskGroups: res.GetTaskGroups(),
		TaskFiles: res.GetTaskFiles(), Signals: res.GetSignals(), VolumeDrivers: res.GetVolumeDrivers(),
	}, nil
}

func (a *adapter) Prepare(ctx context.Context, task *executor.Task, handle []byte) (*executor.Prepared, error) {
	res, err := a.service.Prepare(ctx, &executorv1.PrepareRequest{Task: taskOf(task), Handle: handle})
	if err != nil {
		return nil, ErrorOf(ctx, err)
	}
	return &executor.Prepared{Handle: res.GetHandle(), Namespace: res.GetNetworkNamespace()}, nil
}

func (a *adapter) Start(ctx context.Context, task *executor.Task, handle []byte, network *executor.TaskNetwork) (*executor.Started, error) {
	req := &executorv1.StartRequest{Task: taskOf(task), Handle: handle}
	if network != nil {
		req.Network = &executorv1.TaskNetwork{
			Namespace: network.Namespace, Nameservers: network.Nameservers, Search: network.Search, Options: network.Options, Hosts: network.Hosts,
		}
	}
	res, err := a.service.Start(ctx, req)
	if err != nil {
		return nil, ErrorOf(ctx, err)
	}
	return &executor.Started{Handle: res.GetHandle(), Runtime: res.GetRuntime(), Ports: res.GetPorts()}, nil
}

func (a *adapter) Wait(ctx context.Context, ref executor.Ref) (*executor.Ended, error) {
	res, err := a.service.Wait(ctx, &executorv1.WaitRequest{TaskId: ref.TaskID, Handle: ref.Handle})
	if err != nil {
		return nil, ErrorOf(ctx, err)
	}
	ended := &executor.Ended{Runtime: res.GetRuntime(), Error: res.GetError()}
	if at := res.GetEndedAt(); at.IsValid() {
		ended.At = at.AsTime()
	}
	return ended, nil
}

func (a *adapter) Update(ctx context.Context, task *executor.Task, handle []byte) ([]byte, error) {
	res, err := a.service.Update(ctx, &executorv1.UpdateRequest{Task: taskOf(task), Handle: handle})
	return res.GetHandle(), ErrorOf(ctx, err)
}

func (a *adapter) Shutdown(ctx context.Context, ref executor.Ref, grace *time.Duration) (*musterv1.RuntimeStatus, error) {
	req := &executorv1.ShutdownRequest{TaskId: ref.TaskID, Handle: ref.Handle}
	if grace != nil {
		req.GracePeriod = durationpb.New(*grace)
	}
	res, err := a.service.Shutdown(ctx, req)
	return res.GetRuntime(), ErrorOf(ctx, err)
}

func (a *adapter) Terminate(ctx context.Context, ref executor.Ref) (*musterv1.RuntimeStatus, error) {
	res, err := a.service.Terminate(ctx, &executorv1.TerminateRequest{TaskId: ref.TaskID, Handle: ref.Handle})
	return res.GetRuntime(), ErrorOf(ctx, err)
}

func (a *adapter) Remove(ctx context.Context, ref executor.Ref) error {
	_, err := a.service.Remove(ctx, &executorv1.RemoveRequest{TaskId: ref.TaskID, Handle: ref.Handle})
	return ErrorOf(ctx, err)
}

func (a *adapter) Signal(ctx context.Context, ref executor.Ref, signal string) error {
	_, err := a.service.Signal(ctx, &executorv1.SignalRequest{TaskId: ref.TaskID, Handle: ref.Handle, Signal: signal})
	return ErrorOf(ctx, err)
}

func (a *adapter) Volumes(ctx context.Context, node string) ([]*musterv1.NodeVolume, error) {
	res, err := a.service.ListVolumes(ctx, &executorv1.ListVolumesRequest{NodeId: node})
	return res.GetVolumes(), ErrorOf(ctx, err)
}

func (a *adapter) RemoveVolume(ctx context.Context, name string) error {
	_, err := a.service.RemoveVolume(ctx, &executorv1.RemoveVolumeRequest{Name: name})
	return ErrorOf(ctx, err)
}

func (a *adapter) List(ctx context.Context, node string) ([]executor.Listed, error) {
	res, err := a.service.List(ctx, &executorv1.ListRequest{NodeId: node})
	if err != nil {
		return nil, ErrorOf(ctx, err)
	}
	listed := make([]executor.Listed, 0, len(res.GetTasks()))
	for _, t := range res.GetTasks() {
		listed = append(listed, executor.Listed{
			Ref: executor.Ref{TaskID: t.GetTaskId(), Handle: t.GetHandle()}, State: stateOf(t.GetState()), Runtime: t.GetRuntime(),
			Namespace: t.GetNetworkNamespace(),
		})
	}
	return listed, nil
}

func stateOf(s executorv1.ListedTask_State) executor.State {
	switch s {
	case executorv1.ListedTask_PREPARED:
		return executor.StatePrepared
	case executorv1.ListedTask_RUNNING:
		return executor.StateRunning
	case executorv1.ListedTask_ENDED:
		return executor.StateEnded
	default:
		return executor.StateUnknown
	}
}

func (a *adapter) Logs(ctx context.Context, ref executor.Ref, options *musterv1.LogOptions, emit func(*executor.LogLine) error) error {
	req := &executorv1.LogsRequest{TaskId: ref.TaskID, Handle: ref.Handle, Options: options}
	return ErrorOf(ctx, a.service.logs(ctx, req, func(res *executorv1.LogsResponse) error {
		line := &executor.LogLine{Stream: res.GetStream(), Data: res.GetData()}
		if at := res.GetTimestamp(); at.IsValid() {
			line.Time = at.AsTime()
		}
		return emit(line)
	}))
}

func (a *adapter) Observe(ctx context.Context, ref executor.Ref, emit func(*executor.Observation) error) error {
	req := &executorv1.ObserveRequest{TaskId: ref.TaskID, Handle: ref.Handle}
	return ErrorOf(ctx, a.service.observe(ctx, req, func(res *executorv1.ObserveResponse) error {
		return emit(&executor.Observation{Runtime: res.GetRuntime(), Message: res.GetMessage(), Error: res.GetError()})
	}))
}
