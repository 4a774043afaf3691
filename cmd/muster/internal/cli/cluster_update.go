package cli

import (
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func (c *CLI) clusterUpdate() *cobra.Command {
	var (
		add, remove []string
		history     int64
		heartbeat   time.Duration
	)
	cmd := &cobra.Command{
		Use: "update", Short: "Change the cluster's settings", Args: cobra.NoArgs,
		Long: `Change the cluster's settings: they are read, changed as the flags say, and written back. If someone else changed them
in between, nothing is written (exit code 4): run the command again.`,
		Example: `  muster cluster update --task-history-limit 2
  muster cluster update --label-add stage=production`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fs := cmd.Flags()
			if !fs.Changed("task-history-limit") && !fs.Changed("heartbeat-period") && len(add)+len(remove) == 0 {
				return usage("what to change? Give --task-history-limit, --heartbeat-period, --label-add or --label-rm")
			}
			got, err := call(c, cmd, api.GetCluster, &musterv1.GetClusterRequest{})
			if err != nil {
				return err
			}
			spec := got.Cluster.Spec
			if err := changeLabels(spec, add, remove); err != nil {
				return err
			}
			if fs.Changed("task-history-limit") {
				if spec.Orchestration == nil {
					spec.Orchestration = &musterv1.OrchestrationConfig{}
				}
				spec.Orchestration.TaskHistoryRetentionLimit = &history
			}
			if fs.Changed("heartbeat-period") {
				if spec.Dispatcher == nil {
					spec.Dispatcher = &musterv1.DispatcherConfig{}
				}
				spec.Dispatcher.HeartbeatPeriod = durationpb.New(heartbeat)
			}
			resp, err := call(c, cmd, api.UpdateCluster, &musterv1.UpdateClusterRequest{Version: got.Cluster.Meta.GetVersion(), Spec: spec})
			if err == nil {
				c.printf("%s\n", resp.Cluster.Id)
			}
			return err
		},
	}
	fs := cmd.Flags()
	fs.Int64Var(&history, "task-history-limit", 5, "number of tasks kept per slot, including the running one; negative: all")
	fs.DurationVar(&heartbeat, "heartbeat-period", 2*time.Second, "time between heartbeats of a worker, from 100ms to 1h")
	fs.StringArrayVar(&add, "label-add", nil, "add or change a label, key=value (repeatable)")
	fs.StringArrayVar(&remove, "label-rm", nil, "remove a label (repeatable)")
	return cmd
}
