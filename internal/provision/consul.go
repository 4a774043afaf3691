package provision

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
)

const (
	// Datacenter is what Consul's own is called.
	Datacenter = "dc1"
	// serverHome is where a server finds its folder.
	serverHome   = "/consul/data"
	serverConfig = "consul.json"
	serverCert   = "server.pem"
	serverKey    = "server-key.pem"
)

// object is one of JSON.
type object map[string]any

// Files makes all that Consul's servers need before they run, and all that daemons
// need to speak to them.
func (c *Cluster) Files() error {
	secrets, err := c.private(Secrets)
	if err != nil {
		return err
	}
	ca, err := c.authority(secrets)
	if err != nil {
		return err
	}
	gossip, err := secrets.keep(gossipKey, newGossipKey)
	if err != nil {
		return fmt.Errorf("gossip key: %w", err)
	}
	management, err := secrets.keep(ManagementToken, newToken)
	if err != nil {
		return fmt.Errorf("management token: %w", err)
	}
	for _, name := range c.servers() {
		if err := c.serverFolder(name, ca, gossip, management); err != nil {
			return fmt.Errorf("server %s: %w", name, err)
		}
	}
	for _, daemon := range slices.Sorted(maps.Keys(c.cfg.Policies)) {
		f, err := c.foreign(daemon)
		if err != nil {
			return err
		}
		if _, err := f.keep(consulToken, newToken); err != nil {
			return fmt.Errorf("consul token of %s: %w", daemon, err)
		}
		if err := f.write(map[string]string{ConsulCA: ca.pem}); err != nil {
			return err
		}
	}
	return nil
}

// serverFolder is a server's home: settings and certificates, and beside them what
// it keeps itself.
func (c *Cluster) serverFolder(name string, ca *authority, gossip, management string) error {
	home, err := c.foreign(name)
	if err != nil {
		return err
	}
	if _, err := c.foreign(filepath.Join(name, "state")); err != nil {
		return err
	}
	token, err := home.keep(agentToken, newToken)
	if err != nil {
		return err
	}
	files, err := ca.serverFiles(func(file string) string { return c.Path(name, file) }, name, Datacenter)
	if err != nil {
		return err
	}
	settings, err := json.MarshalIndent(c.settings(name, token, gossip, management), "", "  ")
	if err != nil {
		return fmt.Errorf("encode settings: %w", err)
	}
	if files == nil {
		files = map[string]string{}
	}
	files[ConsulCA], files[serverConfig] = ca.pem, string(settings)+"\n"
	return home.write(files)
}

// settings are a server's: docs/operations.md says why some of them are not
// Consul's own defaults.
func (c *Cluster) settings(name, token, gossip, management string) object {
	var others []string
	for _, other := range c.servers() {
		if other != name {
			others = append(others, other)
		}
	}
	in := func(file string) string { return path.Join(serverHome, file) }
	return object{
		"server": true, "node_name": name, "datacenter": Datacenter, "data_dir": in("state"),
		"bootstrap_expect": c.cfg.Servers, "retry_join": others, "retry_interval": "1s",
		"bind_addr": "0.0.0.0", "client_addr": "0.0.0.0",
		"ports":   object{"http": -1, "https": 8501, "grpc": -1, "grpc_tls": -1, "dns": -1, "serf_wan": -1},
		"encrypt": gossip, "encrypt_verify_incoming": true, "encrypt_verify_outgoing": true,
		"tls": object{
			"defaults": object{
				"ca_file": in(ConsulCA), "cert_file": in(serverCert), "key_file": in(serverKey),
				"verify_incoming": true, "verify_outgoing": true, "tls_min_version": "TLSv1_3",
			},
			// Daemons prove themselves with ACL tokens.
			"https":        object{"verify_incoming": false},
			"internal_rpc": object{"verify_server_hostname": true},
		},
		"acl": object{
			"enabled": true, "default_policy": "deny", "down_policy": "extend-cache",
			"tokens": object{"initial_management": management, "agent": token},
		},
		"performance": object{"raft_multiplier": 1}, "autopilot": object{"min_quorum": c.cfg.Servers},
		"connect": object{"enabled": false}, "ui_config": object{"enabled": false},
		"disable_update_check": true, "disable_remote_exec": true, "discard_check_output": true, "leave_on_terminate": false,
	}
}
