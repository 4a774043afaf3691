package cli

import (
	"time"

	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// authority is about the cluster's own certificate authority.
func (c *CLI) authority() *cobra.Command {
	show := &cobra.Command{
		Use: "show", Short: "Show the roots that are trusted, in PEM: the file that --ca-file wants", Args: cobra.NoArgs,
		Example: "  muster cluster ca show > ca.pem",
		RunE: ask(c, api.GetAuthority, &musterv1.GetAuthorityRequest{}, func(resp *musterv1.GetAuthorityResponse) error {
			c.printf("%s", resp.Authority.Certificates)
			return nil
		}),
	}
	state := &cobra.Command{
		Use: "status", Short: "Show how far the rotation of the root has come", Args: cobra.NoArgs,
		RunE: ask(c, api.GetAuthority, &musterv1.GetAuthorityRequest{}, func(resp *musterv1.GetAuthorityResponse) error {
			c.printRotation(resp.Authority)
			return nil
		}),
	}
	var finish bool
	rotate := &cobra.Command{
		Use: "rotate", Short: "Replace the root by a new one, without downtime", Args: cobra.NoArgs,
		Long: `Replace the root of the cluster's own authority by a new one, without downtime.

From now on the new root signs, and both are trusted. Daemons and workers renew their certificates within minutes; when all
that are known have, the old root is dropped by itself, and "muster cluster ca status" says so. A node that is down and does
not come back is waited for until its certificate ends, unless it is removed.

Afterwards join tokens have another first part: show them again ("muster cluster join-token") and update the files that hold them. A
person's certificate must be issued again. Contexts keep working; "muster cluster ca show" prints what new ones need.`,
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
	rotate.Flags().BoolVar(&finish, "finish", false, "drop the old root now, and with it every certificate that was not renewed: those daemons and workers must join again")
	return group("ca", "The cluster's own certificate authority", show, state, rotate)
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
