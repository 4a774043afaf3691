package simulation

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
)

// Mutation is a mistake that the product does not have, put in on purpose to see
// that the simulation notices. It sits around the product and not in it: between a
// daemon and its store, a worker and its dispatcher, a worker and its executor, or
// beside them all. It serves one run.
type Mutation struct {
	Name string
	// KV makes another store of what a replica of a daemon is given.
	KV func(daemon string, space kv.KV) kv.KV
	// Stream breaks what a worker and its dispatcher say to each other.
	Stream grpc.StreamClientInterceptor
	// Executor makes another executor of a worker's, for one life of the worker.
	Executor func(inner *null.Executor) sdk.Executor
	// Beside is done beside everything else until ctx ends.
	Beside func(ctx context.Context, space kv.KV) error
}

// Mutations returns all mistakes, ready for one run.
func Mutations() []Mutation {
	return []Mutation{
		blindCommits(), lostCommits(), tornCommits(), staleReads(), everybodyLeads(), lostNews(),
		lostAssignments(), lostOrders(), lostStatuses(),
		forgetfulExecutor(), doubledStarts(), deafExecutor(), falseStarts(),
		overcommittingScheduler(), secondScheduler(), secondOrchestrator(), eagerOrchestrator(), hastyOrchestrator(),
		greedySweep(), carelessSweep(),
	}
}

// every returns a function that says yes each nth time.
func every(n int64) func() bool {
	var calls atomic.Int64
	return func() bool { return calls.Add(1)%n == 0 }
}

// executor is what a worker is given to run its tasks.
func (s *Mutation) executor(inner *null.Executor) sdk.Executor {
	if s.Executor == nil {
		return inner
	}
	return s.Executor(inner)
}

// streams are what lies between a worker and its dispatcher.
func (s *Mutation) streams(faults ...grpc.StreamClientInterceptor) []grpc.StreamClientInterceptor {
	if s.Stream == nil {
		return faults
	}
	return append(faults, s.Stream)
}
