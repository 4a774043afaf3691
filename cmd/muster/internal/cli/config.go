package cli

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func (c *CLI) config() *cobra.Command {
	k := configKind()
	return group("config", "Store configs: files for tasks that are not secret",
		c.configCreate(), listCommand(c, k), inspectCommand(c, k), c.configUpdate(), c.configRotate(), removeCommand(c, k))
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

muster config rotate gives it other data, which tasks get in the same file.`,
		Example: `  muster config create nginx.conf ./nginx.conf
  generate-settings | muster config create --label team=web settings-2 -`,
		RunE: func(cmd *cobra.Command, args []string) error {
			spec := &musterv1.ConfigSpec{Name: args[0]}
			var err error
			if spec.Labels, err = parseLabels("label", labels); err != nil {
				return err
			}
			if spec.Data, err = c.readData(args[1], "config", maxConfig); err != nil {
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

// readData reads a file, or standard input for "-", of at most so many bytes. Noun names what
// it becomes.
func (c *CLI) readData(file, noun string, most int64) (data []byte, err error) {
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
		return nil, usage("%s has more than %d KiB, the most that a %s can have", file, most>>10, noun)
	}
	return data, nil
}

func (c *CLI) configUpdate() *cobra.Command {
	return c.labelUpdate("config", "muster config rotate gives it other data", func(cmd *cobra.Command, ref string, add, remove []string) error {
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
}

// labelUpdate is the command update of a kind of which only labels change. Instead says how
// the rest changes.
func (c *CLI) labelUpdate(noun, instead string, update func(cmd *cobra.Command, ref string, add, remove []string) error) *cobra.Command {
	var add, remove []string
	cmd := &cobra.Command{
		Use: "update [flags] " + strings.ToUpper(noun) + "...", Short: "Change the labels of " + noun + "s", Args: cobra.MinimumNArgs(1),
		Example: "  muster " + noun + " update --label-add team=web --label-rm draft app",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(add)+len(remove) == 0 {
				return usage("what to change? Give --label-add or --label-rm; %s", instead)
			}
			return c.each(args, func(ref string) error { return update(cmd, ref, add, remove) })
		},
	}
	cmd.Flags().StringArrayVar(&add, "label-add", nil, "add or change a label, key=value (repeatable)")
	cmd.Flags().StringArrayVar(&remove, "label-rm", nil, "remove a label (repeatable)")
	return cmd
}

func (c *CLI) configRotate() *cobra.Command {
	return &cobra.Command{
		Use: "rotate CONFIG FILE|-", Short: "Give a config other data", Args: cobra.ExactArgs(2),
		Long: `Give a config other data, of a file or standard input ("-").

Tasks that use the config get the new data in the same file.`,
		Example: "  muster config rotate nginx.conf ./nginx.conf",
		RunE: func(cmd *cobra.Command, args []string) error {
			data, err := c.readData(args[1], "config", maxConfig)
			if err != nil {
				return err
			}
			got, err := call(c, cmd, api.GetConfig, &musterv1.GetConfigRequest{Config: args[0]})
			if err != nil {
				return err
			}
			_, err = call(c, cmd, api.RotateConfig, &musterv1.RotateConfigRequest{Config: got.Config.Id, Version: got.Config.Meta.GetVersion(), Data: data})
			if err == nil {
				c.printf("%s\n", args[0])
			}
			return err
		},
	}
}

// existingThenFile completes the name of an object and then a file with its new data.
func existingThenFile(names cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return names(cmd, args, toComplete)
		}
		return configFile(cmd, args, toComplete)
	}
}

// configFile completes the file of a new config or secret, which comes after its name.
func configFile(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
