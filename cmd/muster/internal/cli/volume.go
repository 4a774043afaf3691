package cli

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// nodesAtOnce is how many nodes a command asks for their volumes at the same time.
const nodesAtOnce = 8

func (c *CLI) volume() *cobra.Command {
	return group("volume", "List and remove the volumes of nodes", c.volumeList(), c.volumeInspect(), c.volumeRemove(), c.volumePrune())
}

// volumeFlags say which volumes are meant.
type volumeFlags struct {
	nodes, filters []string
}

func (f *volumeFlags) add(cmd *cobra.Command, filters bool) {
	cmd.Flags().StringArrayVar(&f.nodes, "node", nil, "node, by host name or id (repeatable; default: all nodes that are up)")
	if filters {
		cmd.Flags().StringArrayVarP(&f.filters, "filter", "f", nil, "name=TEXT (a part of the name), driver=NAME, label=KEY, label=KEY=VALUE or in-use=true|false (repeatable)")
	}
}

// matches reports whether a volume passes all filters.
func (f *volumeFlags) matches(v *musterv1.NodeVolume) (bool, error) {
	for _, filter := range f.filters {
		key, want, _ := strings.Cut(filter, "=")
		passes := false
		switch key {
		case "name":
			passes = strings.Contains(v.Name, want)
		case "driver":
			passes = v.Driver == want
		case "label":
			label, value, given := strings.Cut(want, "=")
			has, ok := v.Labels[label]
			passes = ok && (!given || has == value)
		case "in-use":
			if want != "true" && want != "false" {
				return false, usage("--filter: in-use: %w", wantOneOf(want, []string{"true", "false"}))
			}
			passes = v.InUse == (want == "true")
		default:
			return false, usage("--filter: there is no filter %q; want name, driver, label or in-use", key)
		}
		if !passes {
			return false, nil
		}
	}
	return true, nil
}

// volumes returns the volumes of nodes that pass the filters, in order of name and node,
// and an error for each node that did not answer.
func (c *CLI) volumes(cmd *cobra.Command, f *volumeFlags) ([]*musterv1.NodeVolume, error) {
	if _, err := f.matches(&musterv1.NodeVolume{}); err != nil {
		return nil, err
	}
	nodes := f.nodes
	if len(nodes) == 0 {
		all, err := readAll(&musterv1.ListNodesRequest{}, func(req *musterv1.ListNodesRequest) (page[*musterv1.Node], error) {
			resp, err := call(c, cmd, api.ListNodes, req)
			return page[*musterv1.Node]{resp.GetNodes(), resp.GetNextPageToken()}, err
		})
		if err != nil {
			return nil, err
		}
		for _, n := range all {
			if n.GetStatus().GetState() == musterv1.NodeStatus_READY {
				nodes = append(nodes, n.Id)
			}
		}
	}
	var (
		mu      sync.Mutex
		found   []*musterv1.NodeVolume
		errs    []error
		workers errgroup.Group
	)
	workers.SetLimit(nodesAtOnce)
	for _, node := range nodes {
		workers.Go(func() error {
			resp, err := call(c, cmd, api.ListNodeVolumes, &musterv1.ListNodeVolumesRequest{Node: node})
			mu.Lock()
			defer mu.Unlock()
			found = append(found, resp.GetVolumes()...)
			if err != nil {
				errs = append(errs, fmt.Errorf("node %s: %w", node, err))
			}
			return nil
		})
	}
	_ = workers.Wait() // errors are in errs
	found = slices.DeleteFunc(found, func(v *musterv1.NodeVolume) bool {
		matches, _ := f.matches(v) // the filters were checked
		return !matches
	})
	slices.SortFunc(found, func(a, b *musterv1.NodeVolume) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.NodeName, b.NodeName), cmp.Compare(a.NodeId, b.NodeId))
	})
	return found, errors.Join(errs...)
}

func volumeTable(volumes []*musterv1.NodeVolume) *table {
	t := &table{header: []string{"VOLUME", "NODE", "DRIVER", "IN USE", "SERVICES", "CREATED"}}
	for _, v := range volumes {
		inUse := ""
		if v.InUse {
			inUse = "yes"
		}
		created := ""
		if v.CreatedAt != nil {
			created = ago(v.CreatedAt)
		}
		t.add(v.Name, cmp.Or(v.NodeName, v.NodeId), v.Driver, inUse, strings.Join(v.Services, ", "), created)
	}
	return t
}

func (c *CLI) volumeList() *cobra.Command {
	var (
		o output
		f volumeFlags
	)
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the volumes of nodes", Args: cobra.NoArgs,
		Long: `List the volumes of nodes. The nodes are asked; those that do not answer are named on standard error, and the exit code is
then not 0.

IN USE says that a container of the node uses the volume. SERVICES are those whose mounts name it, on whatever node.`,
		Example: "  muster volume ls\n  muster volume ls --node db-1 --filter driver=local -q",
		RunE: func(cmd *cobra.Command, _ []string) error {
			volumes, err := c.volumes(cmd, &f)
			return errors.Join(show(c, &o, volumes, (*musterv1.NodeVolume).GetName, func() *table { return volumeTable(volumes) }), err)
		},
	}
	o.addFlags(cmd, true)
	f.add(cmd, true)
	return cmd
}

func (c *CLI) volumeInspect() *cobra.Command {
	var (
		o output
		f volumeFlags
	)
	cmd := &cobra.Command{
		Use: "inspect VOLUME...", Short: "Show volumes of nodes in full", Args: cobra.MinimumNArgs(1),
		Example: "  muster volume inspect dbdata\n  muster volume inspect --node db-1 dbdata",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, err := c.namedVolumes(cmd, &f, args)
			return errors.Join(show(c, &o, found, nil, func() *table { return volumeTable(found) }), err)
		},
	}
	o.addInspectFlags(cmd)
	f.add(cmd, false)
	return cmd
}

// namedVolumes returns the volumes of these names, on whatever nodes, and an error for each
// that no node has.
func (c *CLI) namedVolumes(cmd *cobra.Command, f *volumeFlags, names []string) ([]*musterv1.NodeVolume, error) {
	all, err := c.volumes(cmd, f)
	found := slices.DeleteFunc(slices.Clone(all), func(v *musterv1.NodeVolume) bool { return !slices.Contains(names, v.Name) })
	for _, name := range names {
		if !slices.ContainsFunc(found, func(v *musterv1.NodeVolume) bool { return v.Name == name }) {
			err = errors.Join(err, status.Errorf(codes.NotFound, "no node that answers has a volume %q", name))
		}
	}
	return found, err
}

func (c *CLI) volumeRemove() *cobra.Command {
	var (
		f     volumeFlags
		force bool
	)
	cmd := &cobra.Command{
		Use: "rm VOLUME...", Aliases: []string{"remove"}, Short: "Remove volumes of nodes with their data", Args: cobra.MinimumNArgs(1),
		Long: `Remove volumes of nodes with their data. A volume that a container uses is not removed, nor, without --force, one that a
mount of a service names. If several nodes have a volume of the name, --node says on which of them it is removed.`,
		Example: "  muster volume rm dbdata\n  muster volume rm --node db-1 --node db-2 dbdata",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, err := c.namedVolumes(cmd, &f, args)
			if err != nil {
				return err
			}
			return c.each(args, func(name string) error {
				on := map[string]string{}
				for _, v := range found {
					if v.Name == name {
						on[v.NodeId] = cmp.Or(v.NodeName, v.NodeId)
					}
				}
				if len(on) > 1 && len(f.nodes) == 0 {
					return fmt.Errorf("volume %q is on %d nodes (%s): name those on which it must be removed with --node", name, len(on), strings.Join(slices.Sorted(maps.Values(on)), ", "))
				}
				var errs []error
				for _, node := range slices.Sorted(maps.Keys(on)) {
					_, err := call(c, cmd, api.RemoveNodeVolume, &musterv1.RemoveNodeVolumeRequest{Node: node, Volume: name, Force: force})
					errs = append(errs, err)
				}
				return errors.Join(errs...)
			})
		},
	}
	f.add(cmd, false)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove volumes although services name them")
	return cmd
}

func (c *CLI) volumePrune() *cobra.Command {
	var (
		f     volumeFlags
		force bool
	)
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove the volumes of nodes that nothing uses", Args: cobra.NoArgs,
		Long: `Remove the volumes that tasks have made, that no container uses, and that no mount of a service names, with their data.
They are listed first, and removed if the answer is "y". Volumes that others made on the nodes stay.`,
		Example: "  muster volume prune\n  muster volume prune --force --filter label=stage=test",
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := c.volumes(cmd, &f)
			unused := slices.DeleteFunc(found, func(v *musterv1.NodeVolume) bool { return v.InUse || !v.MadeByTask || len(v.Services) > 0 })
			if len(unused) == 0 {
				cmd.PrintErrln("no unused volumes")
				return err
			}
			var names []string
			for _, v := range unused {
				names = append(names, v.Name+" on "+cmp.Or(v.NodeName, v.NodeId))
			}
			if !force && !Confirm(cmd, c.In, fmt.Sprintf("Remove %s?", strings.Join(names, ", "))) {
				return errors.New("nothing was removed: answer y to remove them, or give --force")
			}
			errs := []error{err}
			for i, v := range unused {
				switch _, err := call(c, cmd, api.RemoveNodeVolume, &musterv1.RemoveNodeVolumeRequest{Node: v.NodeId, Volume: v.Name}); status.Code(err) {
				case codes.OK:
					c.printf("%s\n", names[i])
				case codes.NotFound:
				default:
					// A task may use it since.
					errs = append(errs, err)
				}
			}
			return errors.Join(errs...)
		},
	}
	f.add(cmd, false)
	cmd.Flags().StringArrayVar(&f.filters, "filter", nil, "name=TEXT (a part of the name), driver=NAME, label=KEY or label=KEY=VALUE (repeatable)")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}
