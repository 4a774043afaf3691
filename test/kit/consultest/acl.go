package consultest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/consul/api"

	shipped "github.com/musterhq/muster/compose/consul/policies"
)

// ManagementToken may do everything at a server whose ACLs are on.
const ManagementToken = "11111111-2222-3333-4444-555555555555"

// ACL are the settings of a server that refuses everything without a token.
const ACL = `acl { enabled = true default_policy = "deny" tokens { initial_management = "` + ManagementToken + `" agent = "` + ManagementToken + `" } }`

// NewTokens chooses a token for each daemon, for Grant.
func NewTokens(daemons ...string) map[string]string {
	tokens := map[string]string{}
	for i, daemon := range daemons {
		tokens[daemon] = fmt.Sprintf("%08d-2222-3333-4444-555555555555", i)
	}
	return tokens
}

// Grant makes each daemon's policy, from the file DAEMON.hcl in a directory, and its
// token, as compose/consul/bootstrap.sh does. The servers' ACLs must be on.
func (c *Cluster) Grant(ctx context.Context, policies string, tokens map[string]string) error {
	client, err := api.NewClient(&api.Config{Address: c.servers[0].Address, Token: ManagementToken})
	if err != nil {
		return err
	}
	var nodes []string
	for _, s := range c.servers {
		nodes = append(nodes, s.Node)
	}
	options := (&api.WriteOptions{}).WithContext(ctx)
	for daemon, token := range tokens {
		rules, err := os.ReadFile(filepath.Join(policies, daemon+".hcl"))
		if err != nil {
			return err
		}
		name := "muster-" + daemon
		if _, _, err := client.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: shipped.ForNodes(string(rules), nodes...)}, options); err != nil {
			return fmt.Errorf("policy of %s: %w", daemon, err)
		}
		if _, _, err := client.ACL().TokenCreate(&api.ACLToken{
			SecretID: token, Description: name, Policies: []*api.ACLTokenPolicyLink{{Name: name}},
		}, options); err != nil {
			return fmt.Errorf("token of %s: %w", daemon, err)
		}
	}
	return nil
}
