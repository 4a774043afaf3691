package cli

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
)

func (c *CLI) network() *cobra.Command {
	k := networkKind()
	return group("network", "Create and manage networks, on which services reach each other",
		c.networkCreate(), listCommand(c, k), c.networkInspect(k), removeCommand(c, k), c.networkPrune(k), c.networkProbe())
}

func networkKind() *kind[*musterv1.Network, *musterv1.ListNetworksRequest] {
	k := &kind[*musterv1.Network, *musterv1.ListNetworksRequest]{
		noun: "network",
		table: rows([]string{"ID", "NAME", "DRIVER", "SUBNETS", "BLOCKS", "CREATED", "NOTES"}, func(n *musterv1.Network) []string {
			return []string{
				short(n.Id, false), n.Spec.GetName(), networkDriver(n), subnets(n), blocks(n), ago(n.Meta.GetCreatedAt()), networkNotes(n),
			}
		}),
		about: `List networks.

BLOCKS are the parts of the subnets that nodes have for their tasks, of those that there are. SUBNETS are empty until the
allocator has given some.`,
		id:   (*musterv1.Network).GetId,
		name: func(n *musterv1.Network) string { return n.Spec.GetName() },
		hint: func(n *musterv1.Network) string { return networkDriver(n) + " " + subnets(n) },
		examples: [3]string{
			"  muster network ls\n  muster network ls --filter label=team=web -q",
			"  muster network inspect back\n  muster network inspect back --format table",
			"  muster network rm back",
		},
		removes: "Remove networks that no service uses",
		list:    pages(api.ListNetworks, (*musterv1.ListNetworksResponse).GetNetworks),
		get:     byName(api.GetNetwork, func(ref string) *musterv1.GetNetworkRequest { return &musterv1.GetNetworkRequest{Network: ref} }, (*musterv1.GetNetworkResponse).GetNetwork),
		remove:  byName(api.RemoveNetwork, func(ref string) *musterv1.RemoveNetworkRequest { return &musterv1.RemoveNetworkRequest{Network: ref} }, nothing[*musterv1.RemoveNetworkResponse]),
	}
	k.filters = commonFilters(k.names)
	return k
}

// networkNames returns the names of all networks by id.
func (c *CLI) networkNames(cmd *cobra.Command) (map[string]string, error) {
	k := networkKind()
	networks, err := k.listAll(c, cmd, k.request())
	names := make(map[string]string, len(networks))
	for _, n := range networks {
		names[n.Id] = n.Spec.GetName()
	}
	return names, err
}

func networkDriver(n *musterv1.Network) string {
	return cmp.Or(n.Spec.GetDriver().GetName(), defaults.NetworkDriver)
}

func subnets(n *musterv1.Network) string {
	var all []string
	for _, c := range n.Ipam.GetConfigs() {
		all = append(all, c.Subnet)
	}
	return strings.Join(all, ", ")
}

func blocks(n *musterv1.Network) string {
	return fmt.Sprintf("%d/%d", n.Status.GetLeasedBlocks(), n.Status.GetTotalBlocks())
}

// networkNotes says what is special about a network, or wrong with it.
func networkNotes(n *musterv1.Network) string {
	var notes []string
	for note, is := range map[string]bool{"ingress": n.Spec.GetIngress(), "internal": n.Spec.GetInternal(), "encrypted": n.Spec.GetEncrypted()} {
		if is {
			notes = append(notes, note)
		}
	}
	if n.Status.GetError() != "" {
		notes = append(notes, "no addresses: "+n.Status.Error)
	}
	return strings.Join(sorted(notes), ", ")
}

// networkOptions are the flags of create.
type networkOptions struct {
	driver                              string
	options, labels                     []string
	subnets, ranges, gateways, reserved []string
	ipv6, internal, ingress, encrypted  bool
	attachable                          bool
	mtu                                 uint32
}

func (c *CLI) networkCreate() *cobra.Command {
	var o networkOptions
	cmd := &cobra.Command{
		Use: "create [flags] NAME", Short: "Create a network", Args: cobra.ExactArgs(1),
		Long: `Create a network, and print its id. Services that are attached to it (service create --network) reach each other by
name, on whichever nodes they run. Other networks do not reach them.

Without --subnet the network gets a free subnet from the cluster's address pool. A network does not change: create another
one, and move services with "service update --network-add new --network-rm old".`,
		Example: `  muster network create back
  muster network create --internal --label team=web back
  muster network create --encrypted back
  muster network create --subnet 10.7.0.0/16 --gateway 10.7.0.1 back
  muster network create --ipv6 --subnet 10.7.0.0/16 --subnet fd00:7::/64 back`,
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := o.spec(args[0])
			if err != nil {
				return err
			}
			resp, err := call(c, cmd, api.CreateNetwork, &musterv1.CreateNetworkRequest{Spec: spec})
			if err != nil {
				origin := specOrigin{fields: networkFlags()}
				return origin.refused(cmd, nil, err)
			}
			c.printf("%s\n", resp.Network.Id)
			return nil
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&o.driver, "driver", "d", defaults.NetworkDriver, "overlay, bridge (within each node) or cni (a CNI configuration on the nodes)")
	fs.StringArrayVarP(&o.options, "opt", "o", nil, "option of the driver, key=value (repeatable)")
	fs.StringArrayVarP(&o.labels, "label", "l", nil, "label, key=value (repeatable)")
	fs.StringArrayVar(&o.subnets, "subnet", nil, "subnet in CIDR notation, one for each of IPv4 and IPv6 (repeatable)")
	fs.StringArrayVar(&o.ranges, "ip-range", nil, "part of a subnet from which addresses are given (repeatable)")
	fs.StringArrayVar(&o.gateways, "gateway", nil, "address of a subnet that stays free for a router (repeatable)")
	fs.StringArrayVar(&o.reserved, "aux-address", nil, "address of a subnet that stays free, name=address (repeatable)")
	fs.BoolVar(&o.ipv6, "ipv6", false, "give tasks IPv6 addresses too")
	fs.BoolVar(&o.internal, "internal", false, "let tasks reach nothing outside the network")
	fs.BoolVar(&o.ingress, "ingress", false, "create the network that published ports lead into")
	fs.BoolVar(&o.encrypted, "encrypted", false, "encrypt the traffic between nodes")
	fs.BoolVar(&o.attachable, "attachable", false, "stored for clients of Docker, without effect: only tasks join networks")
	fs.Uint32Var(&o.mtu, "mtu", 0, "largest packet in bytes (default: derived from the network between the nodes)")
	return cmd
}

// networkFlags are the flags of create by the fields that they set.
func networkFlags() []fieldFlag {
	return []fieldFlag{
		{"labels", []string{"label"}}, {"driver.name", []string{"driver"}}, {"driver.options", []string{"opt"}}, {"mtu", []string{"mtu", "opt"}},
		{"ipv6Enabled", []string{"ipv6"}}, {"internal", []string{"internal"}}, {"ingress", []string{"ingress"}}, {"attachable", []string{"attachable"}},
		{"encrypted", []string{"encrypted", "opt"}},
		{"ipam.configs.range", []string{"ip-range"}}, {"ipam.configs.gateway", []string{"gateway"}}, {"ipam.configs.reserved", []string{"aux-address"}},
		{"ipam.configs.subnet", []string{"subnet"}}, {"ipam.configs", []string{"subnet"}},
	}
}

// spec puts the spec of a network together. Options that Docker's users give as options of
// the driver, and that are fields here, become those.
func (o *networkOptions) spec(name string) (*musterv1.NetworkSpec, error) {
	spec := &musterv1.NetworkSpec{
		Name: name, Ipv6Enabled: o.ipv6, Internal: o.internal, Ingress: o.ingress, Encrypted: o.encrypted, Attachable: o.attachable, Mtu: o.mtu,
	}
	if err := withValues("opt", o.options, "encrypted"); err != nil {
		return nil, err
	}
	var err error
	if spec.Labels, err = parseLabels("label", o.labels); err != nil {
		return nil, err
	}
	options, err := parseLabels("opt", o.options)
	if err != nil {
		return nil, err
	}
	if _, given := options["encrypted"]; given {
		spec.Encrypted = true
		delete(options, "encrypted")
	}
	const mtu = "com.docker.network.driver.mtu"
	if text, given := options[mtu]; given {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return nil, usage("--opt: %s: %q is not a number", mtu, text)
		}
		spec.Mtu = uint32(n)
		delete(options, mtu)
	}
	if o.driver != defaults.NetworkDriver || len(options) > 0 {
		spec.Driver = &musterv1.Driver{Name: o.driver, Options: options}
	}
	if spec.Ipam, err = o.ipam(); err != nil {
		return nil, err
	}
	for _, subnet := range o.subnets {
		spec.Ipv6Enabled = spec.Ipv6Enabled || strings.Contains(subnet, ":")
	}
	return spec, nil
}

// ipam puts each range and address to the subnet that it is in.
func (o *networkOptions) ipam() (*musterv1.IPAMOptions, error) {
	var configs []*musterv1.IPAMConfig
	for _, subnet := range o.subnets {
		configs = append(configs, &musterv1.IPAMConfig{Subnet: subnet})
	}
	of := func(flag, text string) (*musterv1.IPAMConfig, error) {
		address, _, _ := strings.Cut(text, "/")
		a, err := netip.ParseAddr(address)
		if err != nil {
			return nil, usage("--%s: %q is not an IP address", flag, text)
		}
		i := slices.IndexFunc(configs, func(c *musterv1.IPAMConfig) bool {
			p, err := netip.ParsePrefix(c.Subnet)
			return err == nil && p.Contains(a)
		})
		if i < 0 {
			return nil, usage("--%s: %s is in none of the subnets; give its subnet with --subnet", flag, text)
		}
		return configs[i], nil
	}
	for _, r := range o.ranges {
		c, err := of("ip-range", r)
		if err != nil {
			return nil, err
		}
		if c.Range != "" {
			return nil, usage("--ip-range: subnet %s has the range %s already, and a subnet has one; keep addresses from tasks with --aux-address name=ADDRESS", c.Subnet, c.Range)
		}
		c.Range = r
	}
	for _, g := range o.gateways {
		c, err := of("gateway", g)
		if err != nil {
			return nil, err
		}
		if c.Gateway != "" {
			return nil, usage("--gateway: subnet %s has the gateway %s already, and a subnet has one; keep addresses from tasks with --aux-address name=ADDRESS", c.Subnet, c.Gateway)
		}
		c.Gateway = g
	}
	reserved, err := parseLabels("aux-address", o.reserved)
	if err != nil {
		return nil, err
	}
	for name, address := range reserved {
		if address == "" {
			return nil, usage("--aux-address: %q: want name=address", name)
		}
		c, err := of("aux-address", address)
		if err != nil {
			return nil, err
		}
		if c.Reserved == nil {
			c.Reserved = map[string]string{}
		}
		c.Reserved[name] = address
	}
	if configs == nil {
		return nil, nil
	}
	return &musterv1.IPAMOptions{Configs: configs}, nil
}

func (c *CLI) networkInspect(k *kind[*musterv1.Network, *musterv1.ListNetworksRequest]) *cobra.Command {
	cmd := inspectCommand(c, k)
	asJSON := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if format, _ := cmd.Flags().GetString("format"); format != "table" {
			return asJSON(cmd, args)
		}
		networks, err := getAll(args, func(ref string) (*musterv1.Network, error) { return call(c, cmd, k.get, ref) })
		if err != nil {
			return err
		}
		hosts, err := c.hostnames(cmd)
		if err != nil {
			return err
		}
		for i, n := range networks {
			if i > 0 {
				c.printf("\n")
			}
			if err := c.printNetwork(cmd, n, hosts); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

// printNetwork prints a network for people.
func (c *CLI) printNetwork(cmd *cobra.Command, n *musterv1.Network, hosts map[string]string) error {
	c.line("Network", n.Id)
	c.line("Name", n.Spec.GetName())
	c.line("Driver", networkDriver(n))
	c.line("Subnets", subnets(n))
	if vni := n.Status.GetVni(); vni != 0 {
		c.line("VNI", fmt.Sprint(vni))
	}
	c.line("Blocks", blocks(n)+" with nodes")
	c.line("Created", ago(n.Meta.GetCreatedAt()))
	c.line("Notes", networkNotes(n))
	names := make([]string, len(n.Status.GetServiceIds()))
	for i, id := range n.Status.GetServiceIds() {
		got, err := call(c, cmd, api.GetService, &musterv1.GetServiceRequest{Service: id})
		// It may have been removed since.
		if names[i] = got.GetService().GetSpec().GetName(); err != nil {
			names[i] = id
		}
	}
	c.line("Services", strings.Join(sorted(names), ", "))
	if len(names) > 0 {
		c.line("Tasks", "see muster ps "+strings.Join(names, " "))
	}
	if len(n.Status.GetBlocks()) == 0 {
		return nil
	}
	c.printf("\n")
	t := &table{header: []string{"NODE", "ADDRESSES"}}
	for _, b := range n.Status.GetBlocks() {
		t.add(cmp.Or(hosts[b.NodeId], b.NodeId), strings.Join(b.Subnets, ", "))
	}
	slices.SortStableFunc(t.rows, func(a, b []string) int { return cmp.Compare(a[0], b[0]) })
	return c.printTable(t)
}
