package cli

import (
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func (c *CLI) tokens() *cobra.Command {
	return group("token", "Manage the API tokens of people and programs", c.tokenCreate(), c.tokenList(), c.tokenRemove())
}

func (c *CLI) tokenCreate() *cobra.Command {
	var (
		role    string
		expires time.Duration
	)
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create an API token and show it once", Args: cobra.ExactArgs(1),
		Example: "  muster token create ci --role operator --expires 720h",
		RunE: func(cmd *cobra.Command, args []string) error {
			if expires < 0 {
				return usage("--expires: %v is in the past", expires)
			}
			req := &musterv1.CreateTokenRequest{Name: args[0], Role: role}
			if expires > 0 {
				req.ExpiresAt = timestamppb.New(time.Now().Add(expires))
			}
			resp, err := call(c, cmd, api.CreateToken, req)
			if err != nil {
				return err
			}
			c.printf("%s\n", resp.Secret)
			return nil
		},
	}
	cmd.Flags().StringVar(&role, "role", "viewer", "viewer, operator or admin")
	cmd.Flags().DurationVar(&expires, "expires", 0, "lifetime (default: until it is removed)")
	return cmd
}

func (c *CLI) tokenList() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List API tokens", Args: cobra.NoArgs,
		RunE: ask(c, api.ListTokens, &musterv1.ListTokensRequest{}, func(resp *musterv1.ListTokensResponse) error {
			c.printf("%-14s %-20s %-9s %-20s %s\n", "ID", "NAME", "ROLE", "EXPIRES", "CREATED BY")
			for _, t := range resp.Tokens {
				expires := "never"
				if t.ExpiresAt != nil {
					expires = t.ExpiresAt.AsTime().Local().Format(time.DateTime)
				}
				c.printf("%-14s %-20s %-9s %-20s %s\n", t.Id, printable(t.Name), t.Role, expires, printable(t.CreatedBy))
			}
			return nil
		}),
	}
}

func (c *CLI) tokenRemove() *cobra.Command {
	return &cobra.Command{
		Use: "rm ID", Short: "Remove an API token, which is refused from then on", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := call(c, cmd, api.RemoveToken, &musterv1.RemoveTokenRequest{Token: args[0]})
			return err
		},
	}
}

func (c *CLI) joinToken() *cobra.Command {
	var rotate bool
	kinds := map[string]musterv1.RotateJoinTokenRequest_Kind{
		"worker": musterv1.RotateJoinTokenRequest_KIND_WORKER, "manager": musterv1.RotateJoinTokenRequest_KIND_MANAGER,
	}
	cmd := &cobra.Command{
		Use: "join-token worker|manager", Short: "Show the token that workers or manager daemons join with", Args: cobra.ExactArgs(1),
		ValidArgs: []string{"worker", "manager"},
		Example:   "  muster cluster join-token worker\n  muster cluster join-token worker --rotate",
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, ok := kinds[args[0]]
			if !ok {
				return usage("%q is neither worker nor manager", args[0])
			}
			if rotate {
				resp, err := call(c, cmd, api.RotateJoinToken, &musterv1.RotateJoinTokenRequest{Kind: kind})
				if err != nil {
					return err
				}
				c.printf("%s\n", resp.Token)
				return nil
			}
			resp, err := call(c, cmd, api.GetJoinTokens, &musterv1.GetJoinTokensRequest{})
			if err != nil {
				return err
			}
			token := resp.Worker
			if kind == musterv1.RotateJoinTokenRequest_KIND_MANAGER {
				token = resp.Manager
			}
			c.printf("%s\n", token)
			return nil
		},
	}
	cmd.Flags().BoolVar(&rotate, "rotate", false, "replace the token; the old one is refused from then on, and members stay")
	return cmd
}
