package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
)

// initTimeout bounds the creation of a cluster's authority.
const initTimeout = 2 * time.Minute

// closed reports whether the cluster has access control.
func (cfg *Config) closed() bool { return cfg.CertificateLifetime > 0 }

// Secret returns the path of a file that `muster init` made: worker.token,
// manager.token, admin.token or ca.pem.
func (c *Cluster) Secret(name string) string { return filepath.Join(c.cfg.Dir, "secrets", name) }

// IdentityDir returns the directory in which a manager, or a worker, keeps its key
// and certificate.
func (c *Cluster) IdentityDir(name string) string { return filepath.Join(c.cfg.Dir, name) }

// clusterKey is the key that seals the cluster's authority.
func (c *Cluster) clusterKey() string { return c.Secret("cluster.key") }

// initialize creates the cluster's authority, as its administrator does.
func (c *Cluster) initialize(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, initTimeout)
	defer cancel()
	if err := os.MkdirAll(filepath.Dir(c.clusterKey()), 0o700); err != nil {
		return fmt.Errorf("make directory of secrets: %w", err)
	}
	args := append([]string{"init", "--consul-address", c.Servers.Addresses(0),
		"--cluster-key-file", c.clusterKey(), "--out", filepath.Dir(c.clusterKey())}, c.cfg.Args["init"]...)
	out, err := exec.CommandContext(ctx, c.cfg.Binary, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("muster init: %w\n%s", err, out)
	}
	return nil
}

// identityArgs are the flags with which a manager, or a worker, gets its certificate.
func (c *Cluster) identityArgs(role authv1.Role, name string) []string {
	switch {
	case !c.cfg.closed():
		// In a network of its own, a replica does not listen on loopback addresses.
		return []string{"--insecure-listen"}
	case role == authv1.Role_APID:
		return []string{"--cluster-key-file", c.clusterKey(), "--certificate-lifetime", c.cfg.CertificateLifetime.String()}
	}
	var args []string
	for _, apid := range c.Replicas("apid") {
		args = append(args, "--join", c.addresses[apid])
	}
	if role == authv1.Role_WORKER {
		return append(args, "--join-token-file", c.Secret("worker.token"))
	}
	if role == authv1.Role_DISPATCHERD {
		// It opens the secrets of tasks.
		args = append(args, "--cluster-key-file", c.clusterKey())
	}
	return append(args, "--join-token-file", c.Secret("manager.token"), "--identity-dir", c.IdentityDir(name))
}
