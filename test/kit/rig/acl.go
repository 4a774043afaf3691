package rig

import (
	"context"
	"os"
	"path/filepath"

	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/consultest"
)

// ConsulTokens are the tokens of the daemons at a Consul with ACLs, by the daemons' names.
// Each has only its daemon's policy that ships.
type ConsulTokens struct {
	policies string
	tokens   map[string]string
}

// NewConsulTokens chooses tokens. Policies is the directory of the policies that ship.
func NewConsulTokens(policies string) *ConsulTokens {
	return &ConsulTokens{policies: policies, tokens: consultest.NewTokens(cluster.Managers()...)}
}

// Of returns a daemon's token.
func (k *ConsulTokens) Of(daemon string) string { return k.tokens[daemon] }

// Secure configures a Consul with ACLs for a cluster, and writes the file with each
// daemon's token into a directory. muster init may do everything, as an operator may.
func (k *ConsulTokens) Secure(cfg *cluster.Config, dir string) error {
	cfg.ConsulSettings = append(cfg.ConsulSettings, consultest.ACL)
	cfg.Prepare = func(ctx context.Context, servers *consultest.Cluster) error {
		return servers.Grant(ctx, k.policies, k.tokens)
	}
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
