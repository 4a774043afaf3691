// Package wire is what both sides of the executor contract agree on beneath
// the protocol itself: how a worker starts an executor plugin and finds its
// service (HashiCorp's go-plugin), and how an error keeps its meaning on the
// way from the one to the other.
//
// The worker's plugin host imports it for the client's side, the plugin SDK
// for the server's side. It knows nothing of tasks and keeps no state.
package wire

import (
	"context"
	"fmt"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
)

const (
	// Name is what the executor's service is called in a plugin set.
	Name = "executor"
	// ProtocolVersion is the newest version of the executor contract that
	// this package speaks. The handshake settles on the highest version that
	// both sides know.
	ProtocolVersion = 1
	// CookieKey is the environment variable that tells an executor that a
	// worker started it. It is a courtesy to people who start an executor by
	// hand, and no secret.
	CookieKey = "MUSTER_EXECUTOR"
	// CookieValue is what the variable holds.
	CookieValue = "d1f7c2f0-muster-executor"
	// StateDirKey is the environment variable in which a worker names a
	// directory that is the executor's own and outlives its process. The
	// worker makes the directory, and never looks into it.
	StateDirKey = "MUSTER_STATE_DIR"
)

// Handshake is what a plugin and its host show each other first.
func Handshake() plugin.HandshakeConfig {
	return plugin.HandshakeConfig{
		MagicCookieKey:   CookieKey,
		MagicCookieValue: CookieValue,
	}
}

// Versions is what can be spoken, by protocol version. A host passes nil.
func Versions(impl executorv1.ExecutorServiceServer) map[int]plugin.PluginSet {
	return map[int]plugin.PluginSet{
		ProtocolVersion: {Name: &grpcPlugin{impl: impl}},
	}
}

// Dispense returns the executor's service of a plugin that has been started.
func Dispense(client plugin.ClientProtocol) (executorv1.ExecutorServiceClient, error) {
	raw, err := client.Dispense(Name)
	if err != nil {
		return nil, fmt.Errorf("dispense the plugin's %s: %w", Name, err)
	}
	service, ok := raw.(executorv1.ExecutorServiceClient)
	if !ok {
		return nil, fmt.Errorf("dispense the plugin's %s: it is a %T", Name, raw)
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
