package docker_test

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/musterhq/muster/plugins/sdk"
)

func TestTerminalOutput(t *testing.T) {
	t.Parallel()
	spec := shell("echo one; echo two >&2")
	spec.Tty = true
	b := newBench(t, taskSpec(spec))
	b.run()
	b.wait()
	if got := b.output(); !slices.Equal(got, []string{"one\r", "two\r"}) {
		t.Errorf("output = %q", got)
	}
}

func TestExecWithTerminal(t *testing.T) {
	t.Parallel()
	b := newBench(t, taskSpec(shell("while :; do sleep 0.05; done")))
	b.run()
	input, typed := io.Pipe()
	output, shown := io.Pipe()
	resize := make(chan *sdk.TerminalSize, 1)
	resize <- &sdk.TerminalSize{Rows: 11, Columns: 22}
	type end struct {
		code int32
		err  error
	}
	ended := make(chan end, 1)
	go func() {
		code, err := b.Exec(b.context(), b.ref, sdk.Command{Args: []string{"/bin/sh"}, TTY: true, Size: &sdk.TerminalSize{Rows: 33, Columns: 44}},
			sdk.ExecIO{Stdin: input, Stdout: shown, Stderr: shown, Resize: resize})
		ended <- end{code, errors.Join(err, shown.Close())}
	}()
	go func() {
		_, _ = io.WriteString(typed, "echo to-$((40+2)); exit 3\n")
	}()
	all, err := io.ReadAll(output)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(all), "to-42") {
		t.Errorf("the terminal shows %q", all)
	}
	if got := <-ended; got.err != nil || got.code != 3 {
		t.Errorf("Exec = %d, %v; want 3", got.code, got.err)
	}
	if err := typed.Close(); err != nil {
		t.Error(err)
	}
}
