package sdk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/musterhq/muster/plugins/sdk/wire"
)

// Serve serves an executor to the worker that started this process. It is all
// that the main function of an executor does, and returns when the worker
// wants the process to end; the process also ends when its worker dies. If the
// executor is an io.Closer, it is closed in the end. Started by hand, the
// process says what it is and ends with exit code 1.
func Serve(executor Executor) {
	if os.Getenv(wire.CookieKey) != wire.CookieValue {
		fmt.Fprint(os.Stderr, explanation(filepath.Base(os.Args[0]), executor))
		os.Exit(1)
	}
	if err := watchHost(os.Stdout, func() { os.Exit(0) }); err != nil {
		fmt.Fprintf(os.Stderr, "this executor will outlive its worker: %v\n", err)
	}
	// Ctrl-C in the terminal of both is for the worker, which ends its executors.
	signal.Ignore(os.Interrupt)
	err := serve(NewServer(executor))
	if closer, ok := executor.(io.Closer); ok {
		err = errors.Join(err, closer.Close())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "the executor ends: %v\n", err)
		os.Exit(1)
	}
}

// StateDir is the directory in which an executor may keep what must outlive its
// process. The worker names it; without a worker it is the given fallback.
func StateDir(fallback string) string {
	if dir := os.Getenv(wire.StateDirKey); dir != "" {
		return dir
	}
	return fallback
}

// explanation tells a person who started an executor by hand what it is, whether
// it could work here, and how it is meant to be started.
func explanation(program string, executor Executor) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var text strings.Builder
	text.WriteString(program + " is an executor of Muster: a plugin that runs tasks for a worker.\n\n")
	if said, err := NewServer(executor).Describe(ctx, nil); err != nil {
		text.WriteString("It cannot say what it is: " + err.Error() + "\n")
	} else {
		health := "works here"
		if !said.GetHealthy() {
			health = "does not work here"
		}
		if message := said.GetMessage(); message != "" {
			health += ": " + message
		}
		for _, line := range [][2]string{
			{"name", said.GetName()},
			{"version", said.GetVersion()},
			{"protocol", strconv.Itoa(wire.ProtocolVersion)},
			{"runs", strings.Join(said.GetKinds(), ", ")},
			{"capabilities", strings.Join(said.GetCapabilities(), ", ")},
			{"health", health},
		} {
			text.WriteString(fmt.Sprintf("  %-13s %s\n", line[0], line[1]))
		}
	}
	text.WriteString("\nIt is not started by hand. Put it into the plugin directory of a worker, which\n" +
		"starts it when it is needed; \"muster plugin ls\" lists it then.\n")
	return text.String()
}

// recoverUnary makes a panic the error of one call. Otherwise a single task
// whose payload upsets the executor would take it away from all other tasks,
// over and over.
func recoverUnary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
	defer func() { recovered(recover(), info.FullMethod, &err) }()
	return handler(ctx, request)
}

func recoverStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() { recovered(recover(), info.FullMethod, &err) }()
	return handler(server, stream)
}

// recovered turns what a panic left into an error. Only before a task runs may
// the task be given up for it.
func recovered(value any, method string, err *error) {
	if value == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "panic in %s: %v\n%s", method, value, debug.Stack())
	call := method[strings.LastIndexByte(method, '/')+1:]
	*err = wire.ToStatus(&wire.Error{
		Code:       codes.Internal,
		Temporary:  call != "Prepare" && call != "Start",
		RetryAfter: 5 * time.Second,
		Err:        fmt.Errorf("the executor panicked: %v", value),
	}, temporary)
}
