package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/musterhq/muster/plugins/sdk"
)

// Exec implements [sdk.Execer].
func (e *Executor) Exec(ctx context.Context, ref sdk.Ref, command sdk.Command, stdio sdk.ExecIO) (int32, error) {
	found, err := e.find(ctx, ref.TaskID, ref.Handle)
	if err != nil {
		return 0, err
	}
	var size *[2]uint
	if command.TTY && command.Size != nil {
		size = &[2]uint{uint(command.Size.GetRows()), uint(command.Size.GetColumns())}
	}
	created, err := e.engine.ContainerExecCreate(ctx, found.ID, container.ExecOptions{
		Cmd: command.Args, Env: command.Env, Tty: command.TTY, ConsoleSize: size,
		AttachStdin: true, AttachStdout: true, AttachStderr: !command.TTY,
	})
	if err != nil {
		if isConflict(err) {
			return 0, sdk.NotStarted(ref.TaskID)
		}
		return 0, gone(ref.TaskID, engineError(fmt.Errorf("prepare the command: %w", err)))
	}
	attached, err := e.engine.ContainerExecAttach(ctx, created.ID, container.ExecAttachOptions{Tty: command.TTY, ConsoleSize: size})
	if err != nil {
		return 0, engineError(fmt.Errorf("run the command: %w", err))
	}
	defer attached.Close()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var resizing sync.WaitGroup
	defer resizing.Wait()
	defer cancel()
	resizing.Go(func() { e.resize(ctx, created.ID, stdio.Resize) })
	// A reader cannot be woken: this ends when its input does, which is closed
	// once this call is over. A closed connection takes nothing more.
	go func() {
		_, err := io.Copy(attached.Conn, stdio.Stdin)
		if err == nil {
			_ = attached.CloseWrite()
		}
	}()
	// Closing the connection ends the copying below when the call is cancelled.
	stop := context.AfterFunc(ctx, attached.Close)
	defer stop()
	if command.TTY {
		_, err = io.Copy(stdio.Stdout, attached.Reader)
	} else {
		_, err = stdcopy.StdCopy(stdio.Stdout, stdio.Stderr, attached.Reader)
	}
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if err != nil {
		return 0, engineError(fmt.Errorf("read the command's output: %w", err))
	}
	return e.execCode(ctx, created.ID)
}

// execCode returns a command's exit code. Its output may end a moment before the
// Engine has noted its end.
func (e *Executor) execCode(ctx context.Context, id string) (int32, error) {
	return poll(ctx, func() (int32, error) {
		found, err := e.engine.ContainerExecInspect(ctx, id)
		switch {
		case err != nil:
			return 0, engineError(fmt.Errorf("inspect the command: %w", err))
		case found.Running:
			return 0, errPending
		}
		return int32(found.ExitCode), nil
	})
}

// resize passes new sizes of the terminal on.
func (e *Executor) resize(ctx context.Context, id string, sizes <-chan *sdk.TerminalSize) {
	for {
		select {
		case size := <-sizes:
			err := e.engine.ContainerExecResize(ctx, id, container.ResizeOptions{Height: uint(size.GetRows()), Width: uint(size.GetColumns())})
			if err != nil && !errors.Is(err, context.Canceled) {
				// The command is shown in the former size, and that is all.
				e.log.Debug("cannot resize a terminal")
			}
		case <-ctx.Done():
			return
		}
	}
}
