package cli

import (
	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func (c *CLI) serviceRollback() *cobra.Command {
	w := wait{rollout: true, rollback: true}
	cmd := &cobra.Command{
		Use: "rollback SERVICE", Short: "Return to a service's previous spec and wait until its tasks run", Args: cobra.ExactArgs(1),
		Long: `Return to a service's spec before the last update and wait until its tasks run (--detach: do not wait).

Tasks are replaced according to the --rollback-... flags of "service update". The current spec becomes the previous one, so
that a second rollback undoes the first. The number of replicas set by "service scale" stays.

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
