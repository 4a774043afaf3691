package cli

import (
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
)

func (c *CLI) clusterUpdate() *cobra.Command {
	var (
		add, remove []string
		history     int64
		heartbeat   time.Duration
		net         networkSettings
	)
	cmd := &cobra.Command{
		Use: "update", Short: "Change the cluster's settings", Args: cobra.NoArgs,
		Long: `Change the cluster's settings: they are read, changed as the flags say, and written back. If someone else changed them
in between, nothing is written (exit code 4): run the command again.

The address pools are for networks that are created from then on: networks keep the subnets that they have. Services keep
ports that they publish when those are reserved.`,
		Example: `  muster cluster update --task-history-limit 2
  muster cluster update --label-add stage=production
  muster cluster update --default-addr-pool 172.20.0.0/14 --default-addr-pool-mask-length 24
  muster cluster update --reserved-port 22/tcp --reserved-port 53 --reserved-port 7700-7705/tcp`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fs := cmd.Flags()
			changes := false
			cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) { changes = changes || f.Changed })
			if !changes {
				return usage("what to change? Give --task-history-limit, --heartbeat-period, --default-addr-pool, --max-networks, --reserved-port, --label-add or --label-rm")
			}
			got, err := call(c, cmd, api.GetCluster, &musterv1.GetClusterRequest{})
			if err != nil {
				return err
			}
			spec := got.Cluster.Spec
			if err := changeLabels(spec, add, remove); err != nil {
				return err
			}
			changeLimits(fs, spec, history, heartbeat)
			if err := net.apply(fs, spec); err != nil {
				return err
			}
			resp, err := call(c, cmd, api.UpdateCluster, &musterv1.UpdateClusterRequest{Version: got.Cluster.Meta.GetVersion(), Spec: spec})
			if err != nil {
				return clusterOrigin().refused(cmd, nil, err)
			}
			c.printf("%s\n", resp.Cluster.Id)
			return nil
		},
	}
	fs := cmd.Flags()
	fs.Int64Var(&history, "task-history-limit", 5, "number of tasks kept per slot, including the running one; negative: all")
	fs.DurationVar(&heartbeat, "heartbeat-period", 2*time.Second, "time between heartbeats of a worker, from 100ms to 1h")
	net.addFlags(fs)
	fs.StringArrayVar(&add, "label-add", nil, "add or change a label, key=value (repeatable)")
	fs.StringArrayVar(&remove, "label-rm", nil, "remove a label (repeatable)")
	return cmd
}

// changeLimits sets what the flags for single numbers say.
func changeLimits(fs *pflag.FlagSet, spec *musterv1.ClusterSpec, history int64, heartbeat time.Duration) {
	if fs.Changed("task-history-limit") {
		if spec.Orchestration == nil {
			spec.Orchestration = &musterv1.OrchestrationConfig{}
		}
		spec.Orchestration.TaskHistoryRetentionLimit = &history
	}
	if fs.Changed("heartbeat-period") {
		if spec.Dispatcher == nil {
			spec.Dispatcher = &musterv1.DispatcherConfig{}
		}
		spec.Dispatcher.HeartbeatPeriod = durationpb.New(heartbeat)
	}
}

// clusterOrigin names the flag that each field of the cluster's spec comes from.
func clusterOrigin() *specOrigin {
	return &specOrigin{fields: []fieldFlag{
		{"orchestration.taskHistoryRetentionLimit", []string{"task-history-limit"}},
		{"dispatcher.heartbeatPeriod", []string{"heartbeat-period"}},
		{"network.addressPools.base", []string{"default-addr-pool"}},
		{"network.addressPools.size", []string{"default-addr-pool-mask-length"}},
		{"network.addressPools", []string{"default-addr-pool"}},
		{"network.reservedPorts", []string{"reserved-port"}},
		{"network.maxNetworks", []string{"max-networks"}},
		{"labels", []string{"label-add"}},
	}}
}

// networkSettings are the flags for the cluster's networks.
type networkSettings struct {
	pools []string
	size  uint32
	// reserved are ports that services cannot publish, and most is how many networks
	// there may be.
	reserved []string
	most     uint32
}

func (n *networkSettings) addFlags(fs *pflag.FlagSet) {
	fs.StringArrayVar(&n.pools, "default-addr-pool", nil, `range that networks get their subnets from, in CIDR notation; "": the default, 10.64.0.0/10 (repeatable)`)
	fs.Uint32Var(&n.size, "default-addr-pool-mask-length", 16, "prefix length of the subnets of IPv4 pools; those of IPv6 pools have 64")
	fs.StringArrayVar(&n.reserved, "reserved-port", nil, `port or range that services cannot publish, such as 22/tcp, 8300-8302/udp or 53; replaces all reserved ports, and "" reserves none (repeatable; default: ssh, Muster, Consul)`)
	fs.Uint32Var(&n.most, "max-networks", defaults.MaxNetworks(nil), "number of networks that the cluster may have, besides the ingress network")
}

// apply sets what the command line names.
func (n *networkSettings) apply(fs *pflag.FlagSet, spec *musterv1.ClusterSpec) error {
	pools, size := fs.Changed("default-addr-pool"), fs.Changed("default-addr-pool-mask-length")
	if size && !pools {
		return usage("--default-addr-pool-mask-length: give the pools too, with --default-addr-pool")
	}
	reserved, most := fs.Changed("reserved-port"), fs.Changed("max-networks")
	if spec.Network == nil && (pools || reserved || most) {
		spec.Network = &musterv1.NetworkConfig{}
	}
	if reserved {
		ports := slices.DeleteFunc(slices.Clone(n.reserved), func(p string) bool { return p == "" })
		spec.Network.ReservedPorts = &musterv1.ReservedPorts{Ports: ports}
	}
	if most {
		spec.Network.MaxNetworks = &n.most
	}
	if !pools {
		return nil
	}
	spec.Network.AddressPools = nil
	for _, base := range n.pools {
		pool := &musterv1.AddressPool{Base: base, Size: n.size}
		if strings.Contains(base, ":") {
			pool.Size = 64
		}
		if base != "" {
			spec.Network.AddressPools = append(spec.Network.AddressPools, pool)
		}
	}
	return nil
}
