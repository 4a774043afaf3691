package cli

import (
	"fmt"
	"io"
	"os"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func (c *CLI) config() *cobra.Command {
	k := configKind()
	return group("config", "Store configs: files for tasks that are not secret",
		c.configCreate(), listCommand(c, k), inspectCommand(c, k), c.configUpdate(), removeCommand(c, k))
}

func configKind() *kind[*musterv1.Config, *musterv1.ListConfigsRequest] {
	k := &kind[*musterv1.Config, *musterv1.ListConfigsRequest]{
		noun: "config",
		table: rows([]string{"ID", "NAME", "SIZE", "CREATED", "UPDATED"}, func(m *musterv1.Config) []string {
			return []string{short(m.Id, false), m.Spec.GetName(), units.BytesSize(float64(m.Size)), ago(m.Meta.GetCreatedAt()), ago(m.Meta.GetUpdatedAt())}
		}),
		id:   (*musterv1.Config).GetId,
		name: func(m *musterv1.Config) string { return m.Spec.GetName() },
		hint: func(m *musterv1.Config) string { return units.BytesSize(float64(m.Size)) },
		examples: [3]string{
			"  muster config ls\n  muster config ls --filter label=team=web -q",
			"  muster config inspect nginx.conf\n  muster config inspect nginx.conf --format '{{.spec.data}}' | base64 -d",
			"  muster config rm nginx.conf",
		},
		removes: "Remove configs that no service uses",
		list:    pages(api.ListConfigs, (*musterv1.ListConfigsResponse).GetConfigs),
		get:     byName(api.GetConfig, func(ref string) *musterv1.GetConfigRequest { return &musterv1.GetConfigRequest{Config: ref} }, (*musterv1.GetConfigResponse).GetConfig),
		remove:  byName(api.RemoveConfig, func(ref string) *musterv1.RemoveConfigRequest { return &musterv1.RemoveConfigRequest{Config: ref} }, nothing[*musterv1.RemoveConfigResponse]),
	}
	k.filters = commonFilters(k.names)
	return k
}

// maxConfig is the greatest length of a config's data. A longer file is refused without
// being read whole.
const maxConfig = 1000 << 10

func (c *CLI) configCreate() *cobra.Command {
	var labels []string
	cmd := &cobra.Command{
		Use: "create [flags] NAME FILE|-", Short: "Store a file or standard input as a config", Args: cobra.ExactArgs(2),
		Long: `Store a file, or standard input ("-"), as a config of 1 byte to 1000 KiB, and print its id.

The data of a config never changes: store new data under another name, and remove the old config when nothing uses it.`,
		Example: `  muster config create nginx.conf ./nginx.conf
  generate-settings | muster config create --label team=web settings-2 -`,
		RunE: func(cmd *cobra.Command, args []string) error {
			spec := &musterv1.ConfigSpec{Name: args[0]}
			var err error
			if spec.Labels, err = parseLabels("label", labels); err != nil {
				return err
			}
			if spec.Data, err = c.readData(args[1], maxConfig); err != nil {
				return err
			}
			resp, err := call(c, cmd, api.CreateConfig, &musterv1.CreateConfigRequest{Spec: spec})
			if err == nil {
				c.printf("%s\n", resp.Config.Id)
			}
			return err
		},
	}
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "label, key=value (repeatable)")
	return cmd
}

// readData reads a file, or standard input for "-", of at most so many bytes.
func (c *CLI) readData(file string, most int64) (data []byte, err error) {
	in := c.In
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, usage("%w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	if data, err = io.ReadAll(io.LimitReader(in, most+1)); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	if int64(len(data)) > most {
		return nil, usage("%s has more than %d KiB, the most that a config can have", file, most>>10)
	}
	return data, nil
}

func (c *CLI) configUpdate() *cobra.Command {
	var add, remove []string
	cmd := &cobra.Command{
		Use: "update [flags] CONFIG...", Short: "Change the labels of configs", Args: cobra.MinimumNArgs(1),
		Example: "  muster config update --label-add team=web --label-rm draft nginx.conf",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(add)+len(remove) == 0 {
				return usage("what to change? Give --label-add or --label-rm; the data of a config does not change")
			}
			return c.each(args, func(ref string) error {
				got, err := call(c, cmd, api.GetConfig, &musterv1.GetConfigRequest{Config: ref})
				if err != nil {
					return err
				}
				spec := &musterv1.ConfigSpec{Name: got.Config.Spec.GetName(), Labels: got.Config.Spec.GetLabels()}
				if err := changeLabels(spec, add, remove); err != nil {
					return err
				}
				_, err = call(c, cmd, api.UpdateConfig, &musterv1.UpdateConfigRequest{Config: got.Config.Id, Version: got.Config.Meta.GetVersion(), Spec: spec})
				return err
			})
		},
	}
	cmd.Flags().StringArrayVar(&add, "label-add", nil, "add or change a label, key=value (repeatable)")
	cmd.Flags().StringArrayVar(&remove, "label-rm", nil, "remove a label (repeatable)")
	return cmd
}

// configFile completes the file of a new config, which comes after its name.
func configFile(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
