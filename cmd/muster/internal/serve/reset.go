package serve

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/workerd"
)

// resetCommand removes what a worker has on its machine.
func resetCommand() *cobra.Command {
	var (
		f       workerFlags
		force   bool
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use: "reset", Short: "End all tasks of a node and remove its networks, before the node is removed for good", Args: cobra.NoArgs,
		Long: `End all tasks of a node and remove its networks, before the node is removed for good.

A worker that is stopped leaves its tasks running and their networks connected, for the next start. This command ends and
removes the tasks of all executors, and everything that network plugins have set up on the machine. The worker must be
stopped first. Afterwards the data directory can be deleted, and the node be removed from the cluster with
'muster node rm'.`,
		Example: `  systemctl disable --now muster-workerd
  muster workerd reset
  rm -r /var/lib/muster/worker`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := daemon.Load(cmd.Flags(), os.LookupEnv); err != nil {
				return &cli.UsageError{Err: err}
			}
			if timeout <= 0 {
				return &cli.UsageError{Err: errors.New("--timeout: must be longer than 0")}
			}
			if _, err := os.Stat(f.cfg.DataDir); f.cfg.DataDir != "" && err != nil {
				return &cli.UsageError{Err: fmt.Errorf("--data-dir: want the data directory of the node: %w", err)}
			}
			node, err := f.cfg.KnownNodeID()
			if err != nil {
				return err
			}
			if node == "" {
				return &cli.UsageError{Err: fmt.Errorf("--data-dir: no worker has used %s: want the data directory of the node", f.cfg.DataDir)}
			}
			cfg := f.cfg
			cfg.Plugins = f.plugins()
			// The settings need one, and the command connects to none.
			cfg.Dispatchers = []string{"127.0.0.1:0"}
			if err := workerd.CheckNodeID(node); err != nil {
				return &cli.UsageError{Err: fmt.Errorf("--node-id: %w", err)}
			}
			if !force && !cli.Confirm(cmd, cmd.InOrStdin(), fmt.Sprintf("End all tasks of node %s and remove its networks from this machine?", node)) {
				return &cli.UsageError{Err: errors.New("nothing was removed; answer y, or give --force")}
			}
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), timeout, fmt.Errorf("not done after %v (--timeout)", timeout))
			defer cancel()
			if err := workerd.Sweep(ctx, workerd.Env{Logger: zap.NewNop()}, cfg); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), node)
			return err
		},
	}
	f.cfg = workerd.DefaultConfig()
	f.addDataDir(cmd.Flags())
	cmd.Flags().StringVar(&f.cfg.NodeID, "node-id", "", "id of the node (default: the one stored in --data-dir)")
	f.addRuntimeDir(cmd.Flags())
	f.addMachine(cmd.Flags())
	f.addPlugins(cmd.Flags())
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to try")
	return cmd
}
