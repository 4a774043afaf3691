package cli

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// errNotReached says that something of a service is not reached.
var errNotReached = errors.New("not reached")

func (c *CLI) networkProbe() *cobra.Command {
	var o output
	req := &musterv1.TestNetworkRequest{}
	cmd := &cobra.Command{
		Use: "test [flags] SERVICE", Short: "Try whether a service is reached on a network", Args: cobra.ExactArgs(1),
		Long: `Try from a node whether a service is reached on a network, and say where the way breaks.

The node asks for the service's name and connects to its virtual address, to its published ports, to each of its tasks and
to each other node of the network, as a task of its own would. It connects to the TCP ports that the service publishes;
without any it tries whether the address answers. UDP ports are not tried.

The exit code is 0 if all is well, and 7 if something is broken. What is broken, and what to do about it, is printed on
standard error.`,
		Example: `  muster network test db
  muster network test --network back --from node-2 db
  muster network test --format json db | jq '.[0].problems'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Service = args[0]
			resp, err := call(c, cmd, api.TestNetwork, req)
			if err != nil {
				return err
			}
			if o.format == "table" {
				c.line("Network", resp.NetworkName)
				c.line("From", fmt.Sprintf("%s (%s)", cmp.Or(resp.NodeName, resp.NodeId), resp.Source))
				c.printf("\n")
			}
			if err := show(c, &o, []*musterv1.TestNetworkResponse{resp}, nil, func() *table { return probeTable(resp) }); err != nil {
				return err
			}
			if resp.Ok {
				return nil
			}
			text := ""
			for _, p := range resp.Problems {
				text += "\n  " + printable(p)
			}
			return fmt.Errorf("service %s is %w everywhere on network %s:%s", args[0], errNotReached, resp.NetworkName, text)
		},
	}
	o.addFlags(cmd, false)
	cmd.Flags().StringVar(&req.Node, "from", "", "node from which to try, by host name or id (default: one that runs a task on the network)")
	cmd.Flags().StringVar(&req.Network, "network", "", "network of the service on which to try (default: the first of its spec)")
	return cmd
}

func probeTable(resp *musterv1.TestNetworkResponse) *table {
	t := &table{header: []string{"TRIED", "TASK", "NODE", "AT", "RESULT", "TIME"}}
	for _, one := range resp.Checks {
		k := one.GetCheck()
		took := ""
		if d := k.GetTook().AsDuration(); d > 0 {
			took = d.Round(100 * time.Microsecond).String()
		}
		result := strings.ToLower(strings.ReplaceAll(k.GetResult().String(), "_", " "))
		if k.GetMessage() != "" {
			result += ": " + k.GetMessage()
		}
		t.add(strings.ToLower(strings.ReplaceAll(k.GetKind().String(), "_", " ")), one.TaskName, one.NodeName, k.GetTarget(), result, took)
	}
	return t
}
