// Package handshake is how a worker starts an executor plugin and finds its
// service: HashiCorp's go-plugin, told of Muster's contract. The other side, the
// SDK's or that of a program in another language, speaks the same protocol
// without the library. It keeps no state.
package handshake

import (
	"context"
	"fmt"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// name is what the executor's service is called in a plugin set.
const name = "executor"

// Config is what a plugin and its host show each other first.
func Config() plugin.HandshakeConfig {
	return plugin.HandshakeConfig{
		MagicCookieKey:   wire.CookieKey,
		MagicCookieValue: wire.CookieValue,
	}
}

// Versions is what can be spoken, by protocol version. A host passes nil.
func Versions(impl executorv1.ExecutorServiceServer) map[int]plugin.PluginSet {
	return map[int]plugin.PluginSet{
		wire.ProtocolVersion: {name: &grpcPlugin{impl: impl}},
	}
}

// Dispense returns the executor's service of a plugin that has been started.
func Dispense(client plugin.ClientProtocol) (executorv1.ExecutorServiceClient, error) {
	raw, err := client.Dispense(name)
	if err != nil {
		return nil, fmt.Errorf("dispense the plugin's %s: %w", name, err)
	}
	service, ok := raw.(executorv1.ExecutorServiceClient)
	if !ok {
		return nil, fmt.Errorf("dispense the plugin's %s: it is a %T", name, raw)
	}
	return service, nil
}

// grpcPlugin tells go-plugin how to serve and to reach an executor.
type grpcPlugin struct {
	plugin.NetRPCUnsupportedPlugin
	impl executorv1.ExecutorServiceServer
}

var _ plugin.GRPCPlugin = (*grpcPlugin)(nil)

func (p *grpcPlugin) GRPCServer(_ *plugin.GRPCBroker, server *grpc.Server) error {
	executorv1.RegisterExecutorServiceServer(server, p.impl)
	return nil
}

func (p *grpcPlugin) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return executorv1.NewExecutorServiceClient(conn), nil
}
