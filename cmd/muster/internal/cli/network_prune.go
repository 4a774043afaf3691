package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func (c *CLI) networkPrune(k *kind[*musterv1.Network, *musterv1.ListNetworksRequest]) *cobra.Command {
	var (
		force   bool
		filters []string
	)
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove all networks that no service uses", Args: cobra.NoArgs,
		Long: `Remove all networks that no service uses, except for the ingress network. They are listed first, and removed if the
answer is "y".`,
		Example: `  muster network prune
  muster network prune --force --filter label=stage=test`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := k.request()
			if err := setFilters(filters, k.filters, req); err != nil {
				return err
			}
			unused, err := c.unusedNetworks(cmd, k, req)
			if err != nil {
				return err
			}
			if len(unused) == 0 {
				cmd.PrintErrln("there is no network without services")
				return nil
			}
			if !force && !Confirm(cmd, c.In, fmt.Sprintf("Remove %s?", strings.Join(unused, ", "))) {
				return errors.New("nothing was removed: answer y to remove them, or give --force")
			}
			var errs []error
			for _, name := range unused {
				switch _, err := call(c, cmd, k.remove, name); status.Code(err) {
				case codes.OK:
					c.printf("%s\n", name)
				case codes.NotFound:
				default:
					// A service may use it since.
					errs = append(errs, err)
				}
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	cmd.Flags().StringArrayVar(&filters, "filter", nil, filterHelp(k.filters, "repeatable"))
	_ = cmd.RegisterFlagCompletionFunc("filter", c.completeFilters(k.filters, k.request())) // the flag exists
	return cmd
}

// unusedNetworks returns the names of networks that no service uses.
func (c *CLI) unusedNetworks(cmd *cobra.Command, k *kind[*musterv1.Network, *musterv1.ListNetworksRequest], req *musterv1.ListNetworksRequest) ([]string, error) {
	networks, err := k.listAll(c, cmd, req)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range networks {
		if n.Spec.GetIngress() {
			continue
		}
		whole, err := call(c, cmd, k.get, n.Id)
		if status.Code(err) == codes.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		if len(whole.Status.GetServiceIds()) == 0 {
			names = append(names, whole.Spec.GetName())
		}
	}
	slices.Sort(names)
	return names, nil
}

// Confirm asks a question, and reports whether the answer, a line of in, is yes.
func Confirm(cmd *cobra.Command, in io.Reader, question string) bool {
	cmd.PrintErrf("%s [y/N] ", printable(question))
	answer, _ := bufio.NewReader(in).ReadString('\n')
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes"
}
