package pluginhost

import (
	"context"
	"fmt"

	goplugin "github.com/hashicorp/go-plugin"

	"github.com/musterhq/muster/plugins/handshake"
	"github.com/musterhq/muster/workerd/executor"
	executors "github.com/musterhq/muster/workerd/executor/contractv1"
	"github.com/musterhq/muster/workerd/network"
	networks "github.com/musterhq/muster/workerd/network/contractv1"
)

// The names of plugin files begin with one of these.
const (
	// Prefix is that of executors.
	Prefix = "muster-executor-"
	// NetworkPrefix is that of network plugins.
	NetworkPrefix = "muster-network-"
)

// kind is a kind of plugins: what differs between executors and network plugins. There
// are two.
type kind struct {
	prefix string
	// noun is what people call a plugin of the kind, and field is the name of the log field
	// that names one.
	noun, field string
	// connect finds the service of a process.
	connect func(i *instance, client goplugin.ClientProtocol) error
	// describe asks a process what it is.
	describe func(ctx context.Context, i *instance) (about, error)
}

var executorKind = &kind{
	prefix: Prefix, noun: "executor", field: "executor",
	connect: func(i *instance, client goplugin.ClientProtocol) (err error) {
		i.executor, err = executors.FromPlugin(client)
		return err
	},
	describe: func(ctx context.Context, i *instance) (about, error) {
		said, err := i.executor.Describe(ctx)
		return about{executor: said}, err
	},
}

var networkKind = &kind{
	prefix: NetworkPrefix, noun: "network plugin", field: "network_plugin",
	connect: func(i *instance, client goplugin.ClientProtocol) error {
		service, err := handshake.DispenseNetwork(client)
		if err != nil {
			return fmt.Errorf("find the network plugin's service: %w", err)
		}
		i.network = networks.FromClient(service)
		return nil
	},
	describe: func(ctx context.Context, i *instance) (about, error) {
		said, err := i.network.Describe(ctx)
		return about{network: said}, err
	},
}

// about is what a plugin says of itself: one of the two, or neither if it has not said
// anything yet.
type about struct {
	executor *executor.About
	network  *network.About
}

func (a about) known() bool { return a.executor != nil || a.network != nil }

func (a about) version() string {
	if a.network != nil {
		return a.network.Version
	}
	if a.executor != nil {
		return a.executor.Version
	}
	return ""
}

// pinName is what pins call a plugin's file.
func (k *kind) pinName(name string) string {
	if k == networkKind {
		return NetworkPrefix + name
	}
	return name
}

// same reports whether two files are the same plugin.
func (f file) same(other file) bool { return f.kind == other.kind && f.name == other.name }
