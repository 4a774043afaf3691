package networksdk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/internal/process"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// Serve serves a plugin to the worker that started this process. It is all that the
// main function of a plugin does, and returns when the worker wants the process to
// end; the process also ends when its worker dies. If the plugin is an io.Closer, it
// is closed in the end. Started by hand, the process says what it is and ends with
// exit code 1.
func Serve(plugin Plugin) {
	server := NewServer(plugin)
	process.Main(&process.Plugin{
		Kind:       "network plugin",
		Register:   func(r grpc.ServiceRegistrar) { networkv1.RegisterNetworkServiceServer(r, server) },
		Explain:    func(ctx context.Context, program string) string { return explanation(ctx, program, server) },
		Fatal:      func(call string) bool { return call == "Attach" },
		MaxRequest: MaxRequest,
		Impl:       plugin,
	})
}

// NewServer makes a plugin answer the contract. Serve does this by itself; it is
// for those who serve the contract in their own process.
func NewServer(plugin Plugin) networkv1.NetworkServiceServer {
	return &server{plugin: plugin, applying: make(chan struct{}, 1), tasks: map[string]*taskLock{}}
}

// explanation tells a person who started a plugin by hand what it is.
func explanation(ctx context.Context, program string, server networkv1.NetworkServiceServer) string {
	intro := program + " is a network plugin of Muster: it connects tasks to networks for a worker."
	said, err := server.Describe(ctx, nil)
	if err != nil {
		return process.Explanation(intro, err, false, "", nil)
	}
	return process.Explanation(intro, nil, said.GetHealthy(), said.GetMessage(), [][2]string{
		{"name", said.GetName()},
		{"version", said.GetVersion()},
		{"protocol", strconv.Itoa(wire.ProtocolVersion)},
		{"drivers", strings.Join(said.GetDrivers(), ", ")},
		{"capabilities", strings.Join(said.GetCapabilities(), ", ")},
		{"missing", strings.Join(said.GetMissing(), ", ")},
	})
}

// server checks the worker's requests and their order, and passes them to a Plugin.
type server struct {
	networkv1.UnimplementedNetworkServiceServer
	plugin Plugin

	// applying has room for the one call of Apply that runs.
	applying chan struct{}
	// set is the complete set that has begun and whose last request has not come. It is
	// used only by the call that is in applying.
	set *networkv1.ApplyRequest

	mu sync.Mutex
	// applied is what has been applied; nil before the first complete Apply has
	// succeeded.
	applied *applied
	// tasks holds a lock for each task that a call runs or waits for.
	tasks map[string]*taskLock
}

// taskLock lets one call for a task run at a time.
type taskLock struct {
	slot  chan struct{}
	users int
}

// Whether an error that says nothing of itself is temporary, by call: a task that
// cannot be attached may fail.
const (
	fatal     = false
	temporary = true
)

func (s *server) Describe(ctx context.Context, _ *networkv1.DescribeRequest) (*networkv1.DescribeResponse, error) {
	said, err := s.plugin.Describe(ctx)
	if err != nil {
		return nil, wire.ToStatus(err, temporary)
	}
	if said == nil {
		return nil, status.Error(codes.Internal, "the network plugin described nothing")
	}
	description := proto.CloneOf(said)
	if _, ok := s.plugin.(Statser); ok {
		description.Capabilities = append(description.Capabilities, "stats")
	}
	if _, ok := s.plugin.(Prober); ok {
		description.Capabilities = append(description.Capabilities, "probe")
	}
	slices.Sort(description.Capabilities)
	description.Capabilities = slices.Compact(description.Capabilities)
	return description, nil
}

func (s *server) Apply(ctx context.Context, request *networkv1.ApplyRequest) (*networkv1.ApplyResponse, error) {
	if err := acquire(ctx, s.applying); err != nil {
		return nil, err
	}
	defer func() { <-s.applying }()
	before := s.nowApplied()
	request = s.assemble(request)
	if request == nil {
		return &networkv1.ApplyResponse{}, nil
	}
	if before == nil && !request.GetComplete() {
		return nil, notApplied("changes came before a complete Apply has succeeded")
	}
	after, faults, err := before.with(request)
	if err != nil {
		return nil, err
	}
	failed, err := s.plugin.Apply(ctx, request)
	if err != nil {
		return nil, wire.ToStatus(err, temporary)
	}
	s.mu.Lock()
	s.applied = after
	s.mu.Unlock()
	for id, err := range failed {
		faults.add(id, err)
	}
	return &networkv1.ApplyResponse{Errors: messages(faults.networks), Warnings: messages(faults.parts)}, nil
}

// assemble puts the requests of a complete set together, and returns nil until the last.
// The caller holds s.applying.
func (s *server) assemble(request *networkv1.ApplyRequest) *networkv1.ApplyRequest {
	set := s.set
	switch {
	case request.GetComplete():
		set = request
	case set == nil:
		return request
	default:
		// The lists keep their order.
		proto.Merge(set, request)
	}
	s.set = nil
	if request.GetMore() {
		s.set = set
		return nil
	}
	set.Complete, set.More = true, false
	return set
}

func (s *server) Probe(ctx context.Context, request *networkv1.ProbeRequest) (*networkv1.ProbeResponse, error) {
	prober, ok := s.plugin.(Prober)
	if !ok {
		return nil, status.Error(codes.Unimplemented, "this network plugin cannot try connections")
	}
	applied := s.nowApplied()
	if applied == nil {
		return nil, notApplied("Probe came before a complete Apply has succeeded")
	}
	network, known := applied.networks[request.GetNetworkId()]
	if !known {
		return nil, notApplied(fmt.Sprintf("network %.64q has not been applied", request.GetNetworkId()))
	}
	if _, known := network.services[request.GetServiceId()]; !known {
		return nil, notApplied(fmt.Sprintf("service %.64q has not been applied", request.GetServiceId()))
	}
	if request.GetTimeout().AsDuration() <= 0 {
		return nil, invalid(errors.New("timeout: want more than 0"))
	}
	source, checks, err := prober.Probe(ctx, request)
	if err != nil {
		return nil, wire.ToStatus(err, temporary)
	}
	return &networkv1.ProbeResponse{Source: source, Checks: checks}, nil
}

func (s *server) Attach(ctx context.Context, request *networkv1.AttachRequest) (*networkv1.AttachResponse, error) {
	_, makes := s.plugin.(NamespaceMaker)
	if err := checkAttach(request, makes); err != nil {
		return nil, invalid(err)
	}
	unlock, err := s.lockTask(ctx, request.GetTaskId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	applied := s.nowApplied()
	if applied == nil {
		return nil, notApplied("Attach came before a complete Apply has succeeded")
	}
	for i, a := range request.GetAttachments() {
		network, known := applied.networks[a.GetNetworkId()]
		if !known {
			return nil, notApplied(fmt.Sprintf("network %q has not been applied", a.GetNetworkId()))
		}
		if err := within(a.GetAddresses(), network.subnets); err != nil {
			return nil, invalid(fmt.Errorf("attachments[%d].addresses%w", i, err))
		}
	}
	response, err := s.plugin.Attach(ctx, request)
	if err != nil {
		return nil, wire.ToStatus(err, fatal)
	}
	if response == nil {
		return nil, status.Error(codes.Internal, "the network plugin did not say what the task got")
	}
	return response, nil
}

func (s *server) Detach(ctx context.Context, request *networkv1.DetachRequest) (*networkv1.DetachResponse, error) {
	if err := checkID(request.GetTaskId()); err != nil {
		return nil, invalid(fmt.Errorf("task_id %w", err))
	}
	unlock, err := s.lockTask(ctx, request.GetTaskId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.plugin.Detach(ctx, request.GetTaskId()); err != nil && !sdk.IsNotFound(err) {
		return nil, wire.ToStatus(err, temporary)
	}
	return &networkv1.DetachResponse{}, nil
}

func (s *server) List(ctx context.Context, request *networkv1.ListRequest) (*networkv1.ListResponse, error) {
	if err := checkID(request.GetNodeId()); err != nil {
		return nil, invalid(fmt.Errorf("node_id %w", err))
	}
	ids, err := s.plugin.List(ctx, request.GetNodeId())
	if err != nil {
		return nil, wire.ToStatus(err, temporary)
	}
	return &networkv1.ListResponse{TaskIds: ids}, nil
}

func (s *server) Stats(ctx context.Context, _ *networkv1.StatsRequest) (*networkv1.StatsResponse, error) {
	statser, ok := s.plugin.(Statser)
	if !ok {
		return nil, status.Error(codes.Unimplemented, "this network plugin has no stats")
	}
	stats, err := statser.Stats(ctx)
	if err != nil {
		return nil, wire.ToStatus(err, temporary)
	}
	if stats == nil {
		stats = &Stats{}
	}
	return stats, nil
}

func (s *server) nowApplied() *applied {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applied
}

// lockTask waits until no other call for the task runs.
func (s *server) lockTask(ctx context.Context, id string) (unlock func(), err error) {
	s.mu.Lock()
	lock, ok := s.tasks[id]
	if !ok {
		lock = &taskLock{slot: make(chan struct{}, 1)}
		s.tasks[id] = lock
	}
	lock.users++
	s.mu.Unlock()
	release := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if lock.users--; lock.users == 0 {
			delete(s.tasks, id)
		}
	}
	if err := acquire(ctx, lock.slot); err != nil {
		release()
		return nil, err
	}
	return func() {
		<-lock.slot
		release()
	}, nil
}

// acquire takes the slot, or returns when the caller has given up.
func acquire(ctx context.Context, slot chan struct{}) error {
	// A call that was given up must not run, even if the slot is free.
	if err := ctx.Err(); err != nil {
		return wire.ToStatus(err, temporary)
	}
	select {
	case slot <- struct{}{}:
		return nil
	case <-ctx.Done():
		return wire.ToStatus(ctx.Err(), temporary)
	}
}

// notApplied is the error of a call that needs an Apply first. It is temporary,
// because the worker has not heard of the plugin's restart yet.
func notApplied(text string) error {
	return wire.ToStatus(&wire.Error{Code: codes.FailedPrecondition, Temporary: true, Err: errors.New(text)}, temporary)
}

// invalid is the error of a request that no plugin can carry out.
func invalid(err error) error {
	return wire.ToStatus(&wire.Error{Code: codes.InvalidArgument, Err: err}, fatal)
}
