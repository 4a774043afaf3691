package serve

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/musterhq/muster/workerd"
	"github.com/musterhq/muster/workerd/pluginhost"
)

// sweepName is the command that a sweeper is started with.
const sweepName = "sweep"

const (
	// sweepTimeout bounds what a sweeper does after the cluster has ended.
	sweepTimeout = time.Minute
	// sweepsAtOnce is how many workers are swept at the same time.
	sweepsAtOnce = 8
)

// sweepOrder is what a sweeper is told on its standard input, as the first line.
type sweepOrder struct {
	// Dir holds the workers' directories. It is removed in the end.
	Dir     string            `json:"dir"`
	Plugins pluginhost.Config `json:"plugins"`
	// RuntimeDir is that of the workers.
	RuntimeDir string `json:"runtimeDir"`
}

// sweeper is a process that outlives a cluster in memory, and then ends its tasks and
// removes its networks, unless nothing is left of them. It learns of the end because its
// standard input ends, without a second line if something may be left.
type sweeper struct {
	cmd   *exec.Cmd
	input io.WriteCloser
}

// startSweeper starts the sweeper of a cluster.
func startSweeper(program string, what sweepOrder, out io.Writer) (*sweeper, error) {
	order, err := json.Marshal(what)
	if err != nil {
		return nil, fmt.Errorf("describe what to sweep: %w", err)
	}
	cmd := exec.Command(program, "dev", sweepName)
	// Signals of the terminal are for the cluster alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = out
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe to the sweeper: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the sweeper: %w", err)
	}
	s := &sweeper{cmd: cmd, input: input}
	if _, err := input.Write(append(order, '\n')); err != nil {
		return nil, errors.Join(fmt.Errorf("tell the sweeper what to sweep: %w", err), s.end(false))
	}
	return s, nil
}

// end ends the sweeper. Unless the cluster has left nothing behind, the sweeper
// removes what is left first.
func (s *sweeper) end(nothingLeft bool) error {
	var err error
	if nothingLeft {
		_, err = io.WriteString(s.input, "done\n")
	}
	return errors.Join(err, s.input.Close(), s.cmd.Wait())
}

// sweepCommand is the sweeper's side.
func sweepCommand() *cobra.Command {
	return &cobra.Command{
		Use: sweepName, Hidden: true, Args: cobra.NoArgs, Short: "Remove what an in-memory cluster has left; started by muster dev itself",
		RunE: func(cmd *cobra.Command, _ []string) error {
			// It ends with the cluster, and no sooner.
			outlive(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
			return sweep(context.WithoutCancel(cmd.Context()), cmd.InOrStdin())
		},
	}
}

// sweep reads its order, waits for the end of the cluster, and removes what the
// cluster has left.
func sweep(ctx context.Context, in io.Reader) error {
	lines := bufio.NewScanner(in)
	if !lines.Scan() {
		return errors.Join(errors.New("standard input holds no order; muster dev starts this command itself"), lines.Err())
	}
	var order sweepOrder
	if err := json.Unmarshal(lines.Bytes(), &order); err != nil {
		return fmt.Errorf("read what to sweep: %w", err)
	}
	if lines.Scan() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	workers, err := filepath.Glob(filepath.Join(order.Dir, workerPrefix+"*"))
	if err != nil {
		return fmt.Errorf("find the workers: %w", err)
	}
	failed := make([]error, len(workers))
	var sweeps errgroup.Group
	sweeps.SetLimit(sweepsAtOnce)
	for i, dir := range workers {
		sweeps.Go(func() error {
			cfg := workerd.DefaultConfig()
			cfg.DataDir, cfg.RuntimeDir, cfg.Plugins = dir, order.RuntimeDir, order.Plugins
			// It speaks to none.
			cfg.Dispatchers = []string{"127.0.0.1:0"}
			if err := workerd.Sweep(ctx, workerd.Env{Logger: zap.NewNop()}, cfg); err != nil {
				failed[i] = fmt.Errorf("%s: %w", filepath.Base(dir), err)
			}
			return nil
		})
	}
	_ = sweeps.Wait()
	return errors.Join(errors.Join(failed...), os.RemoveAll(order.Dir))
}

// outlive keeps this process alive when these signals come. Unlike signal.Ignore it
// does not do the same for programs that the process starts.
func outlive(signals ...os.Signal) { signal.Notify(make(chan os.Signal, 1), signals...) }
