// Package executor says what a worker asks of the executors of its node: one
// of them ([Executor]), and all of them ([Set]).
//
// There are two kinds of sets. The plugin host starts executors as processes;
// [NewFixed] holds executors of this process, for simulation and measurement.
package executor

import (
	"context"
	"fmt"
	"slices"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/internal/bounds"
)

// Executor runs tasks. Its methods are those of the executor contract,
// muster.executor.v1.ExecutorService, which says what each of them promises.
// All may be called at once for different tasks. What they are given is shared
// and must not be changed. Their errors are read with wire.FromStatus.
type Executor interface {
	Describe(context.Context, *executorv1.DescribeRequest) (*executorv1.DescribeResponse, error)
	Prepare(context.Context, *executorv1.PrepareRequest) (*executorv1.PrepareResponse, error)
	Start(context.Context, *executorv1.StartRequest) (*executorv1.StartResponse, error)
	Wait(context.Context, *executorv1.WaitRequest) (*executorv1.WaitResponse, error)
	Update(context.Context, *executorv1.UpdateRequest) (*executorv1.UpdateResponse, error)
	Shutdown(context.Context, *executorv1.ShutdownRequest) (*executorv1.ShutdownResponse, error)
	Terminate(context.Context, *executorv1.TerminateRequest) (*executorv1.TerminateResponse, error)
	Remove(context.Context, *executorv1.RemoveRequest) (*executorv1.RemoveResponse, error)
	List(context.Context, *executorv1.ListRequest) (*executorv1.ListResponse, error)
	// Logs calls send with each line, in order, and returns its error if it
	// has one.
	Logs(ctx context.Context, req *executorv1.LogsRequest, send func(*executorv1.LogsResponse) error) error
	// Observe calls send with each change, in order, and returns its error if it
	// has one.
	Observe(ctx context.Context, req *executorv1.ObserveRequest, send func(*executorv1.ObserveResponse) error) error
}

// Set is the executors of a node.
type Set interface {
	// For returns the executor that runs a kind of runtime: "container", or
	// that of a generic runtime. It waits for executors that are being looked
	// at for the first time. An error that wire.FromStatus calls temporary
	// means that an executor for the kind may still turn up.
	For(ctx context.Context, kind string) (*Described, error)
	// Describe asks all executors what they are, and returns when all have
	// answered or ctx has ended. Executors that do not work are in it too.
	Describe(ctx context.Context) []*Described
	// Changes receives when something of what Describe returns has changed.
	// There is one reader.
	Changes() <-chan struct{}
}

// Described is an executor with what it last said of itself. It is not changed
// once it has been handed out.
type Described struct {
	// Name is the executor's. It stays the same over restarts.
	Name string
	// Executor is nil if it cannot be called at all.
	Executor Executor
	// Description is what a node reports of it.
	Description *musterv1.ExecutorDescription
	// Resources are what it adds to the node's.
	Resources *musterv1.Resources
	// Platform is what its tasks see, if that is not the worker's.
	Platform *musterv1.Platform
}

// Can says whether the executor has a capability.
func (d *Described) Can(capability string) bool {
	return slices.Contains(d.Description.GetCapabilities(), capability)
}

// Runs says whether the executor runs a kind of runtime.
func (d *Described) Runs(kind string) bool {
	return slices.Contains(d.Description.GetKinds(), kind)
}

// FromResponse returns an executor with its answer to Describe. One whose schema is
// too large to be reported is unhealthy.
func FromResponse(e Executor, res *executorv1.DescribeResponse) *Described {
	health, message, schema := musterv1.ExecutorDescription_HEALTHY, res.GetMessage(), res.GetPayloadSchema()
	if len(schema) > bounds.MaxSchema {
		message = fmt.Sprintf("payload schema has %d bytes; at most %d are allowed", len(schema), bounds.MaxSchema)
		schema = ""
	}
	if !res.GetHealthy() || schema != res.GetPayloadSchema() {
		health = musterv1.ExecutorDescription_UNHEALTHY
	}
	return &Described{
		Name:     res.GetName(),
		Executor: e,
		Description: &musterv1.ExecutorDescription{
			Name:          res.GetName(),
			Version:       bounds.Text(res.GetVersion(), bounds.MaxName),
			Health:        health,
			Message:       bounds.Text(message, bounds.MaxDescription),
			Kinds:         res.GetKinds(),
			Capabilities:  res.GetCapabilities(),
			PayloadSchema: schema,
		},
		Resources: res.GetResources(),
		Platform:  res.GetPlatform(),
	}
}

// KindOf returns the kind of runtime that a task needs.
func KindOf(spec *musterv1.TaskSpec) string {
	if generic := spec.GetGeneric(); generic != nil {
		return generic.GetKind()
	}
	return "container"
}
