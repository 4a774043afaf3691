// Package provision makes what a whole cluster is told before it runs: the files of
// a Consul of its own (authority, certificates, gossip key, settings), the ACL
// policies and tokens in it, and who gets which secret. Each party has a folder of
// its own, so that a tool that deploys Muster can give each its folder and no other.
//
// All of it can be done again: what is there stays, what is missing is made.
package provision

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
)

// The folders of those who are no daemons.
const (
	// Secrets is for the provisioning user: the key of Consul's authority, Consul's
	// management token, the cluster key. No daemon needs it.
	Secrets = "secrets"
	// Admin is for people: the first administrator's token, and whom to trust.
	Admin = "admin"
	// Worker is for workers.
	Worker = "worker"
	// Monitoring is for what fetches metrics: a viewer's certificate.
	Monitoring = "monitoring"
)

// Names of files.
const (
	ConsulCA        = "consul-ca.pem"
	consulCAKey     = "consul-ca-key.pem"
	gossipKey       = "gossip.key"
	ManagementToken = "management.token"
	// ClusterKey is what the cluster's authority is sealed with.
	ClusterKey  = "cluster.key"
	consulToken = "consul.token"
	agentToken  = "agent.token"
	joinToken   = "join.token"
)

// maxServers is more than any Consul should have.
const maxServers = 7

// Config says what to make, and where.
type Config struct {
	// Dir holds the folders.
	Dir string
	// Servers is how many servers Consul has.
	Servers int
	// Owner is the user whose Consul's and the daemons' files become, for they do
	// not run as root. Nil: they stay with the user who made them.
	Owner *Owner
	// Policies are the daemons' rules in Consul, by the daemon's name.
	Policies map[string]string
}

// Owner is a user by number.
type Owner struct{ User, Group int }

// Cluster is what the caller should know.
type Cluster struct{ cfg Config }

// New checks the configuration and does nothing yet.
func New(cfg Config) (*Cluster, error) {
	if cfg.Dir == "" {
		return nil, errors.New("provision: the output directory is missing")
	}
	if cfg.Servers < 1 || cfg.Servers > maxServers {
		return nil, fmt.Errorf("provision: Consul has %d servers: want 1 to %d", cfg.Servers, maxServers)
	}
	if len(cfg.Policies) == 0 {
		return nil, errors.New("provision: there are no daemons")
	}
	return &Cluster{cfg: cfg}, nil
}

// Path is that of a file in an owner's folder.
func (c *Cluster) Path(party, file string) string { return filepath.Join(c.cfg.Dir, party, file) }

// server is the name of a server, and of its folder: consul-1 and on.
func server(n int) string { return "consul-" + strconv.Itoa(n) }

// servers are the names of all.
func (c *Cluster) servers() []string {
	var all []string
	for n := range c.cfg.Servers {
		all = append(all, server(n+1))
	}
	return all
}
