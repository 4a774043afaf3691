package provision

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/musterhq/muster/compose/consul/policies"
	"github.com/musterhq/muster/internal/backoff"
)

// retryPause is between two attempts to set Consul up.
const retryPause = 500 * time.Millisecond

// agentPolicy lets a server of Consul's tell whether there is a leader: its health
// check asks.
const (
	agentPolicy = "muster-consul"
	agentRules  = `operator = "read"`
)

// ACL puts policies and tokens into Consul, and waits for it first, until the
// context ends: servers that have just been started have no leader, and do not
// know the management token yet. Each client is one of a server.
func (c *Cluster) ACL(ctx context.Context, clients []*api.Client) error {
	if len(clients) == 0 {
		return errors.New("set up Consul: its address is missing")
	}
	for n := 0; ; n++ {
		err := c.setUp(ctx, clients[n%len(clients)])
		if err == nil {
			return nil
		}
		if backoff.Sleep(ctx, retryPause) != nil {
			return fmt.Errorf("set up Consul: %w", err)
		}
	}
}

// grant is what one token is to have.
type grant struct {
	path   string
	token  *api.ACLToken
	policy string
}

func (c *Cluster) setUp(ctx context.Context, client *api.Client) error {
	if err := applyPolicy(ctx, client, agentPolicy, agentRules); err != nil {
		return err
	}
	var grants []grant
	for _, name := range c.servers() {
		grants = append(grants, grant{c.Path(name, agentToken), &api.ACLToken{
			Description: "server " + name, NodeIdentities: []*api.ACLNodeIdentity{{NodeName: name, Datacenter: Datacenter}},
		}, agentPolicy})
	}
	for _, daemon := range slices.Sorted(maps.Keys(c.cfg.Policies)) {
		policy := "muster-" + daemon
		if err := applyPolicy(ctx, client, policy, policies.ForNodes(c.cfg.Policies[daemon], c.servers()...)); err != nil {
			return err
		}
		grants = append(grants, grant{c.Path(daemon, consulToken), &api.ACLToken{Description: policy}, policy})
	}
	known, _, err := client.ACL().TokenList((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("list tokens: %w", err)
	}
	for _, g := range grants {
		if err := g.apply(ctx, client, known); err != nil {
			return err
		}
	}
	return nil
}

// applyPolicy makes a policy, or changes one that is there.
func applyPolicy(ctx context.Context, client *api.Client, name, rules string) error {
	write := (&api.WriteOptions{}).WithContext(ctx)
	p, _, err := client.ACL().PolicyReadByName(name, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	switch {
	case err != nil && !notFound(err):
		return fmt.Errorf("read policy %s: %w", name, err)
	case err != nil || p == nil:
		_, _, err = client.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, write)
	case p.Rules == rules:
		return nil
	default:
		p.Rules = rules
		_, _, err = client.ACL().PolicyUpdate(p, write)
	}
	if err != nil {
		return fmt.Errorf("write policy %s: %w", name, err)
	}
	return nil
}

// apply makes a token of the secret that its holder has already, unless it is there.
func (g grant) apply(ctx context.Context, client *api.Client, known []*api.ACLTokenListEntry) error {
	b, err := os.ReadFile(g.path)
	if err != nil {
		return fmt.Errorf("read token: %w", err)
	}
	secret := strings.TrimSpace(string(b))
	if slices.ContainsFunc(known, func(t *api.ACLTokenListEntry) bool { return t.SecretID == secret }) {
		return nil
	}
	token := *g.token
	token.SecretID, token.Policies = secret, []*api.ACLTokenPolicyLink{{Name: g.policy}}
	if _, _, err := client.ACL().TokenCreate(&token, (&api.WriteOptions{}).WithContext(ctx)); err != nil {
		return fmt.Errorf("make token of %s: %w", token.Description, err)
	}
	return nil
}

// notFound tells what Consul says of an unknown name.
func notFound(err error) bool {
	var status api.StatusError
	return errors.As(err, &status) && status.Code == 404
}
