// Package handshake is how a worker starts a plugin, an executor or a network
// plugin, and finds its service: HashiCorp's go-plugin, told of Muster's contracts.
// The other side, the SDK's or that of a program in another language, speaks the
// same protocol without the library. It keeps no state.
package handshake

import (
	"context"
	"fmt"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// The names of the services in a plugin set.
const (
	executorName = "executor"
	networkName  = "network"
)

// Config is what a plugin and its host show each other first.
func Config() plugin.HandshakeConfig {
	return plugin.HandshakeConfig{
		MagicCookieKey:   wire.CookieKey,
		MagicCookieValue: wire.CookieValue,
	}
}

// Versions is what can be spoken, by protocol version. A host passes nil. Executors
// and network plugins shake hands in the same way; which one a plugin is shows in the
// service that answers.
func Versions(impl executorv1.ExecutorServiceServer) map[int]plugin.PluginSet {
	return map[int]plugin.PluginSet{
		wire.ProtocolVersion: {executorName: &executorPlugin{impl: impl}, networkName: &networkPlugin{}},
	}
}

// Dispense returns the executor's service of a plugin that has been started.
func Dispense(client plugin.ClientProtocol) (executorv1.ExecutorServiceClient, error) {
	return dispense[executorv1.ExecutorServiceClient](client, executorName)
}

// DispenseNetwork returns the network plugin's service of a plugin that has been
// started.
func DispenseNetwork(client plugin.ClientProtocol) (networkv1.NetworkServiceClient, error) {
	return dispense[networkv1.NetworkServiceClient](client, networkName)
}

func dispense[Service any](client plugin.ClientProtocol, name string) (service Service, err error) {
	raw, err := client.Dispense(name)
	if err != nil {
		return service, fmt.Errorf("dispense the plugin's %s: %w", name, err)
	}
	service, ok := raw.(Service)
	if !ok {
		return service, fmt.Errorf("dispense the plugin's %s: it is a %T", name, raw)
	}
	return service, nil
}

// executorPlugin tells go-plugin how to serve and to reach an executor.
type executorPlugin struct {
	plugin.NetRPCUnsupportedPlugin
	impl executorv1.ExecutorServiceServer
}

var _ plugin.GRPCPlugin = (*executorPlugin)(nil)

func (p *executorPlugin) GRPCServer(_ *plugin.GRPCBroker, server *grpc.Server) error {
	executorv1.RegisterExecutorServiceServer(server, p.impl)
	return nil
}

func (p *executorPlugin) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return executorv1.NewExecutorServiceClient(conn), nil
}

// networkPlugin tells go-plugin how to reach a network plugin. The SDK serves it
// without the library.
type networkPlugin struct {
	plugin.NetRPCUnsupportedPlugin
}

var _ plugin.GRPCPlugin = (*networkPlugin)(nil)

func (*networkPlugin) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return nil }

func (*networkPlugin) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return networkv1.NewNetworkServiceClient(conn), nil
}
