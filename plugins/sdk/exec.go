package sdk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// TerminalSize is in characters.
type TerminalSize = executorv1.TerminalSize

// Command is a command for Exec.
type Command struct {
	Args []string
	Env  []string
	TTY  bool
	// Size is the terminal's first size. It is nil if it does not matter.
	Size *TerminalSize
}

// ExecIO is the input and output of a command of Exec.
type ExecIO struct {
	// Stdin ends when the client closes it.
	Stdin  io.Reader
	Stdout io.Writer
	// Stderr is not used if the command has a terminal.
	Stderr io.Writer
	// Resize receives new sizes of the terminal. It is not closed.
	Resize <-chan *TerminalSize
}

// execChunk is the largest output of one message.
const execChunk = 32 << 10

// serveExec runs one Exec stream. The first request starts the command, and the others are
// its input.
func serveExec(execer Execer, stream grpc.BidiStreamingServer[executorv1.ExecRequest, executorv1.ExecResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return status.Error(codes.InvalidArgument, "the first request of Exec must start a command")
	}
	if len(start.GetCommand()) == 0 {
		return wire.ToStatus(SpecFault("command", errors.New("it is empty")), false)
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	stdin, feed := io.Pipe()
	resize := make(chan *TerminalSize)
	// gRPC ends feedExec: its Recv fails once this handler has returned, and not before, so
	// the handler cannot wait for it. By then nothing reads what it writes.
	go feedExec(ctx, stream, feed, resize)
	defer func() { _ = stdin.CloseWithError(io.ErrClosedPipe) }()

	var sending sync.Mutex
	send := func(message *executorv1.ExecResponse) error {
		sending.Lock()
		defer sending.Unlock()
		return stream.Send(message)
	}
	code, err := execer.Exec(ctx, Ref{TaskID: start.GetTaskId(), Handle: start.GetHandle()},
		Command{Args: start.GetCommand(), Env: start.GetEnv(), TTY: start.GetTty(), Size: start.GetSize()},
		ExecIO{
			Stdin: stdin,
			Stdout: execWriter(func(data []byte) error {
				return send(&executorv1.ExecResponse{Response: &executorv1.ExecResponse_Stdout{Stdout: data}})
			}),
			Stderr: execWriter(func(data []byte) error {
				return send(&executorv1.ExecResponse{Response: &executorv1.ExecResponse_Stderr{Stderr: data}})
			}),
			Resize: resize,
		})
	if err != nil {
		return wire.ToStatus(err, false)
	}
	return send(&executorv1.ExecResponse{Response: &executorv1.ExecResponse_ExitCode{ExitCode: code}})
}

// feedExec passes requests on until the stream ends.
func feedExec(ctx context.Context, stream grpc.BidiStreamingServer[executorv1.ExecRequest, executorv1.ExecResponse], stdin *io.PipeWriter, resize chan<- *TerminalSize) {
	for {
		request, err := stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			_ = stdin.CloseWithError(err)
			return
		}
		switch request := request.GetRequest().(type) {
		case *executorv1.ExecRequest_Stdin:
			if len(request.Stdin) == 0 {
				_ = stdin.Close()
				continue
			}
			if _, err := stdin.Write(request.Stdin); err != nil {
				// The command no longer reads. Further input is lost, as in a pipe.
				continue
			}
		case *executorv1.ExecRequest_Resize:
			select {
			case resize <- request.Resize:
			case <-ctx.Done():
				return
			}
		}
	}
}

// execWriter sends its input in messages of bounded size.
type execWriter func([]byte) error

func (w execWriter) Write(data []byte) (int, error) {
	for sent := 0; sent < len(data); {
		chunk := data[sent:min(sent+execChunk, len(data))]
		if err := w(chunk); err != nil {
			return sent, fmt.Errorf("send output: %w", err)
		}
		sent += len(chunk)
	}
	return len(data), nil
}
