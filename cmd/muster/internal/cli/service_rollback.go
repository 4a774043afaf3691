package cli

import (
	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func (c *CLI) serviceRollback() *cobra.Command {
	w := wait{rollout: true, rollback: true}
	cmd := &cobra.Command{
		Use: "rollback SERVICE", Short: "Go back to a service's spec before the last update, and wait until its tasks run", Args: cobra.ExactArgs(1),
		Long: `Go back to a service's spec before the last update, and wait until its tasks run (--detach: do not wait).

Tasks are replaced as the --rollback-... flags of "service update" have said. The spec that is left becomes the previous one,
so that a second rollback takes the first back. The number of replicas that "service scale" has set stays.

` + waitHelp + "\n\n" + ExitCodes,
		Example: `  muster service rollback web
  muster service rollback --detach web`,
		RunE: func(cmd *cobra.Command, args []string) error {
			resp, err := call(c, cmd, api.RollbackService, &musterv1.RollbackServiceRequest{Service: args[0]})
			if err != nil {
				return err
			}
			c.printf("%s\n", args[0])
			return c.converge(cmd.Context(), &w, resp.Service)
		},
	}
	w.addFlags(cmd)
	return cmd
}
