package sdk

import (
	"context"
	"os"
	"strconv"
	"strings"

	"google.golang.org/grpc"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/plugins/sdk/internal/process"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// Serve serves an executor to the worker that started this process. It is all that the main
// function of an executor does. It returns when the worker wants the process to end; the
// process also ends when its worker dies. An executor that is an io.Closer is closed at the
// end. Started by hand, the process explains what it is and exits with code 1.
func Serve(executor Executor) {
	server := NewServer(executor)
	process.Main(&process.Plugin{
		Kind:     "executor",
		Register: func(r grpc.ServiceRegistrar) { executorv1.RegisterExecutorServiceServer(r, server) },
		Explain:  func(ctx context.Context, program string) string { return explanation(ctx, program, server) },
		// Only before a task runs may the task be given up for it.
		Fatal: func(call string) bool { return call == "Prepare" || call == "Start" },
		Impl:  executor,
	})
}

// StateDir returns the directory for what must outlive an executor's process. The worker
// names it. Without a worker it is the given fallback.
func StateDir(fallback string) string {
	if dir := os.Getenv(wire.StateDirKey); dir != "" {
		return dir
	}
	return fallback
}

// explanation tells a person who started an executor by hand what it is, whether it could
// work here, and how to start it.
func explanation(ctx context.Context, program string, server executorv1.ExecutorServiceServer) string {
	intro := program + " is an executor of Muster: a plugin that runs tasks for a worker."
	said, err := server.Describe(ctx, nil)
	if err != nil {
		return process.Explanation(intro, err, false, "", nil)
	}
	return process.Explanation(intro, nil, said.GetHealthy(), said.GetMessage(), [][2]string{
		{"name", said.GetName()},
		{"version", said.GetVersion()},
		{"protocol", strconv.Itoa(wire.ProtocolVersion)},
		{"runs", strings.Join(said.GetKinds(), ", ")},
		{"capabilities", strings.Join(said.GetCapabilities(), ", ")},
	})
}
