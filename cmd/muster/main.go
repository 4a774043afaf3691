// Command muster is Muster: the command line, every daemon as a subcommand, and
// a whole cluster in one process.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/cmd/muster/internal/command"
	"github.com/musterhq/muster/internal/terminal"
)

// version is set when a release is built.
var version = "(devel)"

func main() {
	// The first signal ends things in order; a second one at once.
	ctx, stop := signal.NotifyContext(context.Background(), endings()...)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// endings returns the signals that end a command. A closed terminal does, unless the
// command was started to outlive it (nohup).
func endings() []os.Signal {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	return signals
}

// run runs one command line and returns its exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	c := &cli.CLI{In: in, Out: out, Err: errs, Terminal: isTerminal(errs), OutTerminal: isTerminal(out), Version: version}
	root := command.New(c)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	_ = c.Close()
	if err == nil {
		return 0
	}
	text, code := c.Explain(err)
	// Errors quote what others wrote: a task, or a program on a worker.
	_, _ = fmt.Fprintln(errs, "muster: "+terminal.Text(text))
	return code
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
