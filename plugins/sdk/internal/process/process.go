// Package process is a plugin as a process: how it greets the worker that started
// it, how it is served, and when it ends. It is the same for executors and for
// network plugins.
package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/musterhq/muster/plugins/sdk/wire"
)

// explainTime bounds how long a plugin may take to say what it is.
const explainTime = 10 * time.Second

// Plugin is what a plugin's process serves.
type Plugin struct {
	// Kind is what the plugin is called in messages: "executor".
	Kind string
	// Register adds the plugin's service to a server.
	Register func(grpc.ServiceRegistrar)
	// Explain tells a person who started the program by hand what it is.
	Explain func(ctx context.Context, program string) string
	// Fatal says whether a panic in a call fails the call's task. Otherwise the error
	// is temporary.
	Fatal func(call string) bool
	// MaxRequest is the size of the largest request in bytes; 0 is gRPC's own limit.
	MaxRequest int
	// Impl is closed in the end if it is an io.Closer.
	Impl any
}

// Main serves a plugin until the worker wants the process to end. It ends the
// process if the worker dies, if serving fails, and if a person started it.
func Main(p *Plugin) {
	if os.Getenv(wire.CookieKey) != wire.CookieValue {
		ctx, cancel := context.WithTimeout(context.Background(), explainTime)
		defer cancel()
		fmt.Fprint(os.Stderr, p.Explain(ctx, filepath.Base(os.Args[0])))
		os.Exit(1)
	}
	if err := watchHost(os.Stdout, func() { os.Exit(0) }); err != nil {
		fmt.Fprintf(os.Stderr, "this %s will outlive its worker: %v\n", p.Kind, err)
	}
	// Ctrl-C in the terminal of both is for the worker, which ends its plugins.
	signal.Ignore(os.Interrupt)
	err := p.serve()
	if closer, ok := p.Impl.(io.Closer); ok {
		err = errors.Join(err, closer.Close())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "the %s ends: %v\n", p.Kind, err)
		os.Exit(1)
	}
}

// Explanation returns what a plugin says that was started by hand: an introduction,
// what it says of itself, and how it is meant to be started.
func Explanation(intro string, err error, healthy bool, message string, facts [][2]string) string {
	var text strings.Builder
	text.WriteString(intro + "\n\n")
	if err != nil {
		text.WriteString("It cannot say what it is: " + err.Error() + "\n")
	} else {
		health := "works here"
		if !healthy {
			health = "does not work here"
		}
		if message != "" {
			health += ": " + message
		}
		for _, line := range append(facts, [2]string{"health", health}) {
			fmt.Fprintf(&text, "  %-13s %s\n", line[0], line[1])
		}
	}
	text.WriteString("\nIt is not started by hand. Put it into the plugin directory of a worker, which\n" +
		"starts it when it is needed; \"muster plugin ls\" lists it then.\n")
	return text.String()
}

// recoverUnary makes a panic the error of one call. Otherwise a single task that
// upsets the plugin would take it away from all other tasks, over and over.
func (p *Plugin) recoverUnary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
	defer func() { p.recovered(recover(), info.FullMethod, &err) }()
	return handler(ctx, request)
}

func (p *Plugin) recoverStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() { p.recovered(recover(), info.FullMethod, &err) }()
	return handler(server, stream)
}

// recovered turns what a panic left into an error.
func (p *Plugin) recovered(value any, method string, err *error) {
	if value == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "panic in %s: %v\n%s", method, value, debug.Stack())
	*err = wire.ToStatus(&wire.Error{
		Code:       codes.Internal,
		Temporary:  !p.Fatal(method[strings.LastIndexByte(method, '/')+1:]),
		RetryAfter: 5 * time.Second,
		Err:        fmt.Errorf("the %s panicked: %v", p.Kind, value),
	}, true)
}
