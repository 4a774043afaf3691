package simulation

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
)

// Mutation is a deliberate bug that checks that the simulation notices it. It is not in the
// product but around it: between a daemon and its store, a worker and its dispatcher, a
// worker and its executor, or beside them. It can be used for one run.
type Mutation struct {
	Name string
	// KV wraps the store of a replica of a daemon.
	KV func(daemon string, space kv.KV) kv.KV
	// Stream changes the messages between a worker and its dispatcher.
	Stream grpc.StreamClientInterceptor
	// Executor wraps the executor of a worker, for one process of the worker.
	Executor func(inner *null.Executor) sdk.Executor
	// Beside runs concurrently until ctx ends.
	Beside func(ctx context.Context, space kv.KV) error
}

// Mutations returns all mutations, for one run.
func Mutations() []Mutation {
	return []Mutation{
		blindCommits(), lostCommits(), tornCommits(), staleReads(), sharedLocks(), lostWakeups(),
		lostAssignments(), lostOrders(), lostStatuses(),
		forgetfulExecutor(), doubledStarts(), ignoredShutdowns(), falseStarts(),
		overcommittingScheduler(), secondScheduler(), secondOrchestrator(), eagerOrchestrator(), hastyOrchestrator(),
		greedySweep(), carelessSweep(), thievingAllocator(), secondAllocator(), forgottenSidecars(), impatientMains(),
	}
}

// DependencyMutations returns the mutations of what only services that depend on others
// have, for one run.
func DependencyMutations() []Mutation { return []Mutation{impatientOrchestrator()} }

// every returns a function that returns true for every nth call.
func every(n int64) func() bool {
	var calls atomic.Int64
	return func() bool { return calls.Add(1)%n == 0 }
}

// executor returns the executor of a worker.
func (s *Mutation) executor(inner *null.Executor) sdk.Executor {
	if s.Executor == nil {
		return inner
	}
	return s.Executor(inner)
}

// streams returns the interceptors between a worker and its dispatcher.
func (s *Mutation) streams(faults ...grpc.StreamClientInterceptor) []grpc.StreamClientInterceptor {
	if s.Stream == nil {
		return faults
	}
	return append(faults, s.Stream)
}
