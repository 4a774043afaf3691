package cli

import (
	"time"

	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// authority is about the cluster's own certificate authority.
func (c *CLI) authority() *cobra.Command {
	show := &cobra.Command{
		Use: "show", Short: "Show the trusted roots in PEM, as --ca-file takes them", Args: cobra.NoArgs,
		Example: "  muster cluster ca show > ca.pem",
		RunE: ask(c, api.GetAuthority, &musterv1.GetAuthorityRequest{}, func(resp *musterv1.GetAuthorityResponse) error {
			c.printf("%s", resp.Authority.Certificates)
			return nil
		}),
	}
	state := &cobra.Command{
		Use: "status", Short: "Show the progress of a root rotation", Args: cobra.NoArgs,
		RunE: ask(c, api.GetAuthority, &musterv1.GetAuthorityRequest{}, func(resp *musterv1.GetAuthorityResponse) error {
			c.printRotation(resp.Authority)
			return nil
		}),
	}
	var finish bool
	rotate := &cobra.Command{
		Use: "rotate", Short: "Replace the root without downtime", Args: cobra.NoArgs,
		Long: `Replace the root of the cluster's own authority without downtime.

The new root signs from now on, and both are trusted. Daemons and workers renew their certificates within minutes. When all
known ones have renewed, the old root is dropped automatically and "muster cluster ca status" says so. A node that is down
delays this until its certificate expires or the node is removed.

Afterwards the join tokens are different: show them with "muster cluster join-token" and update the files that contain them. Issue
people's certificates again. Contexts keep working; "muster cluster ca show" prints what new ones need.`,
		Example: "  muster cluster ca rotate\n  muster cluster ca status",
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := call(c, cmd, api.RotateAuthority, &musterv1.RotateAuthorityRequest{Finish: finish})
			if err != nil {
				return err
			}
			c.printRotation(resp.Authority)
			return nil
		},
	}
	rotate.Flags().BoolVar(&finish, "finish", false, "drop the old root now; daemons and workers whose certificates were not renewed must join again")
	return group("ca", "Show and replace the cluster's own certificate authority", show, state, rotate)
}

func (c *CLI) printRotation(a *musterv1.Authority) {
	c.printf("Trust domain:  %s\n", printable(a.Domain))
	r := a.Rotation
	switch {
	case r == nil:
		c.printf("Rotation:      never\n")
		return
	case r.EndedAt != nil:
		c.printf("Rotation:      ended %s\n", r.EndedAt.AsTime().Local().Format(time.DateTime))
		return
	}
	c.printf("Rotation:      under way since %s\n", r.StartedAt.AsTime().Local().Format(time.DateTime))
	if r.StartedBy != "" {
		c.printf("Started by:    %s\n", printable(r.StartedBy))
	}
	if r.Message != "" {
		c.printf("Waiting:       %s\n", printable(r.Message))
	}
	c.printf("Yet to renew:  %d\n", r.Waiting)
	for _, w := range r.WaitingFor {
		c.printf("  %s\n", printable(w))
	}
}
