package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func (c *CLI) cluster() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "inspect", Short: "Show the cluster's settings and a summary of its state", Args: cobra.NoArgs,
		Example: "  muster cluster inspect",
		RunE: ask(c, api.GetCluster, &musterv1.GetClusterRequest{}, func(resp *musterv1.GetClusterResponse) error {
			return show(c, &o, []*musterv1.Cluster{resp.Cluster}, nil, func() *table { return clusterTable(resp.Cluster) })
		}),
	}
	o.addInspectFlags(cmd)
	return group("cluster", "Show the cluster and change its settings", c.clusterStatus(), cmd, c.clusterUpdate(), c.joinToken(), c.authority(), c.keys())
}

func clusterTable(cluster *musterv1.Cluster) *table {
	t := &table{header: []string{"VERSION", "SERVICES", "TASKS", "RUNNING", "NODES", "READY"}}
	s := cluster.Status
	t.add(s.GetVersion(), fmt.Sprint(s.GetServices()), fmt.Sprint(s.GetTasks()), fmt.Sprint(s.GetRunningTasks()), fmt.Sprint(s.GetNodes()), fmt.Sprint(s.GetReadyNodes()))
	return t
}

func (c *CLI) version() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "version", Short: "Show the version of this program", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if asJSON {
				return c.printJSON(map[string]string{"version": c.Version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH})
			}
			c.printf("muster %s (%s, %s/%s)\n", c.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (c *CLI) events() *cobra.Command {
	var (
		kinds, services, filters []string
		format, resume           string
	)
	cmd := &cobra.Command{
		Use: "events", Short: "Show changes of services, tasks, nodes, networks, configs and secrets as they happen", Args: cobra.NoArgs,
		Long: `Show changes of services, tasks, nodes, networks, configs and secrets as they happen, until interrupted.

With --format json each line is a message of the watch. Pass its resumeToken to --resume to continue after it.`,
		Example: `  muster events
  muster events --kind task --service web --format json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "text" && format != "json" {
				return usage("--format: %q is neither text nor json", format)
			}
			req := &musterv1.WatchRequest{Services: services, ResumeToken: resume, IncludeOld: true}
			for _, k := range kinds {
				n, ok := musterv1.ObjectKind_value[strings.ToUpper(k)]
				if !ok || !slices.Contains(objectKinds(), strings.ToLower(k)) {
					return usage("--kind: %q: want one of %s", k, strings.Join(objectKinds(), ", "))
				}
				req.Kinds = append(req.Kinds, musterv1.ObjectKind(n))
			}
			if err := setFilters(filters, watchFilters(), req); err != nil {
				return err
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			stream, err := client.Watch(cmd.Context(), req)
			if err != nil {
				return err
			}
			warnStaleStream(cmd, stream)
			// Tasks of global services are named by the host names of their nodes.
			hosts, err := c.hostnames(cmd)
			if err != nil {
				return err
			}
			for {
				resp, err := stream.Recv()
				if errors.Is(err, io.EOF) || cmd.Context().Err() != nil {
					return nil
				}
				if err != nil {
					return err
				}
				if err := c.printEvents(resp, format, hosts); err != nil {
					return err
				}
			}
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVar(&kinds, "kind", nil, strings.Join(objectKinds(), ", ")+" (repeatable; default: all)")
	fs.StringArrayVar(&services, "service", nil, "only these services and their tasks (repeatable)")
	fs.StringArrayVarP(&filters, "filter", "f", nil, filterHelp(watchFilters(), "repeatable"))
	fs.StringVar(&format, "format", "text", "text, or json: one message per line")
	fs.StringVar(&resume, "resume", "", "continue after the message with this resumeToken")
	return cmd
}

func (c *CLI) printEvents(resp *musterv1.WatchResponse, format string, hosts map[string]string) error {
	if format == "json" {
		b, err := toJSON(resp)
		if err != nil {
			return err
		}
		// One message a line, whatever spacing protojson chose.
		line, err := json.Marshal(json.RawMessage(b))
		if err != nil {
			return fmt.Errorf("write event: %w", err)
		}
		c.printf("%s\n", line)
		return nil
	}
	for _, e := range resp.Events {
		if n := e.GetNode(); n != nil {
			hosts[n.Id] = n.Description.GetHostname()
		}
		c.printf("%s %-7s %-6s %s %s\n", e.At.AsTime().Local().Format(time.TimeOnly), strings.ToLower(e.Kind.String()),
			strings.ToLower(e.Action.String()), e.Id, printable(about(e, hosts)))
	}
	return nil
}

// about says in a few words what changed.
func about(e *musterv1.WatchEvent, hosts map[string]string) string {
	switch o := e.Object.(type) {
	case *musterv1.WatchEvent_Service:
		return fmt.Sprintf("%s %s", o.Service.Spec.GetName(), replicas(o.Service))
	case *musterv1.WatchEvent_Task:
		t := o.Task
		text := join(taskName(t, hosts), strings.ToLower(t.Status.GetState().String()), healthNote(t),
			"(desired "+strings.ToLower(t.DesiredState.String())+")")
		if t.Status.GetError() != "" {
			text += ": " + t.Status.Error
		}
		return text
	case *musterv1.WatchEvent_Node:
		return fmt.Sprintf("%s %s %s", o.Node.Description.GetHostname(), strings.ToLower(o.Node.Status.GetState().String()),
			strings.ToLower(o.Node.Spec.GetAvailability().String()))
	case *musterv1.WatchEvent_Network:
		return join(o.Network.Spec.GetName(), subnets(o.Network), networkNotes(o.Network))
	case *musterv1.WatchEvent_Config:
		return o.Config.Spec.GetName()
	case *musterv1.WatchEvent_Secret:
		return o.Secret.Spec.GetName()
	case *musterv1.WatchEvent_Stack:
		return fmt.Sprintf("%s revision %d", o.Stack.Spec.GetName(), o.Stack.Revision.GetNumber())
	}
	return ""
}
