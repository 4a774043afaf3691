package rig

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/consul/api"

	shipped "github.com/musterhq/muster/compose/consul/policies"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/consultest"
)

// ConsulTokens are the daemons' tokens at a Consul with ACLs, by their names, each
// with only the policy that ships.
type ConsulTokens struct {
	policies string
	tokens   map[string]string
}

// NewConsulTokens chooses tokens; policies is the directory with the policies that
// ship.
func NewConsulTokens(policies string) *ConsulTokens {
	k := &ConsulTokens{policies: policies, tokens: map[string]string{}}
	for i, daemon := range cluster.Managers() {
		k.tokens[daemon] = fmt.Sprintf("%08d-2222-3333-4444-555555555555", i)
	}
	return k
}

// Of returns a daemon's token.
func (k *ConsulTokens) Of(daemon string) string { return k.tokens[daemon] }

// Secure gives a cluster a Consul with ACLs, and each daemon the file with its
// token, which it writes into a directory. muster init is given the right to do
// everything, as an operator has it.
func (k *ConsulTokens) Secure(cfg *cluster.Config, dir string) error {
	cfg.ConsulSettings = append(cfg.ConsulSettings, consultest.ACL)
	cfg.Prepare = k.make
	if cfg.Args == nil {
		cfg.Args = map[string][]string{}
	}
	give := func(program, token string) error {
		file := filepath.Join(dir, program+".consul-token")
		cfg.Args[program] = append(cfg.Args[program], "--consul-token-file", file)
		return os.WriteFile(file, []byte(token+"\n"), 0o600)
	}
	for daemon, token := range k.tokens {
		if err := give(daemon, token); err != nil {
			return err
		}
	}
	return give("init", consultest.ManagementToken)
}

// make makes each daemon's policy and token, as compose/consul/bootstrap.sh does.
func (k *ConsulTokens) make(ctx context.Context, servers *consultest.Cluster) error {
	client, err := api.NewClient(&api.Config{Address: servers.Servers()[0].Address, Token: consultest.ManagementToken})
	if err != nil {
		return err
	}
	var nodes []string
	for _, s := range servers.Servers() {
		nodes = append(nodes, s.Node)
	}
	options := (&api.WriteOptions{}).WithContext(ctx)
	for daemon, token := range k.tokens {
		rules, err := os.ReadFile(filepath.Join(k.policies, daemon+".hcl"))
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
