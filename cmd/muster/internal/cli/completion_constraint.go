package cli

import (
	"context"
	"net"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// constraintKeys returns what constraints can ask of a node, and what the node has.
func constraintKeys(n *musterv1.Node) map[string]string {
	keys := map[string]string{
		"node.id": n.Id, "node.hostname": n.Description.GetHostname(), "node.ip": host(n.Status.GetAddress()),
		"node.role":          strings.ToLower(n.Spec.GetRole().String()),
		"node.platform.os":   n.Description.GetPlatform().GetOs(),
		"node.platform.arch": n.Description.GetPlatform().GetArchitecture(),
	}
	for label, value := range n.Spec.GetLabels() {
		keys["node.labels."+label] = value
	}
	for label, value := range n.Description.GetLabels() {
		keys["engine.labels."+label] = value
	}
	return keys
}

// host returns an address without its port, if it has one.
func host(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// constraints completes KEY==VALUE and KEY!=VALUE with what the cluster's nodes have.
func (c *CLI) constraints(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	key, operator := typed, ""
	if i := strings.IndexAny(typed, "=!"); i >= 0 {
		key, operator = typed[:i], typed[i:]
		operator = operator[:min(len(operator), 2)]
	}
	directive := cobra.ShellCompDirectiveNoFileComp
	if operator != "==" && operator != "!=" {
		directive |= cobra.ShellCompDirectiveNoSpace
	}
	words, _ := c.fromCluster(func(ctx context.Context, client api) []cobra.Completion {
		resp, err := client.ListNodes(ctx, &musterv1.ListNodesRequest{PageSize: pageSize})
		if err != nil {
			return nil
		}
		var words []cobra.Completion
		for _, n := range resp.Nodes {
			for k, value := range constraintKeys(n) {
				switch {
				case directive&cobra.ShellCompDirectiveNoSpace != 0:
					words = append(words, k+"==", k+"!=")
				case k == key && value != "":
					words = append(words, k+operator+value)
				}
			}
		}
		return words
	})(cmd, nil, typed)
	return words, directive
}

// ownConstraints completes the constraints that the service to update has.
func (c *CLI) ownConstraints(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.fromCluster(func(ctx context.Context, client api) []cobra.Completion {
		resp, err := client.GetService(ctx, &musterv1.GetServiceRequest{Service: args[0]})
		if err != nil {
			return nil
		}
		return slices.Clone(resp.Service.Spec.GetTask().GetPlacement().GetConstraints())
	})(cmd, nil, typed)
}
