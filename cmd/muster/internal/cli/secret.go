package cli

import (
	"os"

	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

func (c *CLI) secret() *cobra.Command {
	k := secretKind()
	return group("secret", "Store secrets: files that only the tasks which use them can read",
		c.secretCreate(), listCommand(c, k), inspectCommand(c, k), c.secretUpdate(), c.secretRotate(), removeCommand(c, k))
}

func secretKind() *kind[*musterv1.Secret, *musterv1.ListSecretsRequest] {
	k := &kind[*musterv1.Secret, *musterv1.ListSecretsRequest]{
		noun: "secret",
		table: rows([]string{"ID", "NAME", "CREATED", "UPDATED", "ROTATED"}, func(m *musterv1.Secret) []string {
			return []string{short(m.Id, false), m.Spec.GetName(), ago(m.Meta.GetCreatedAt()), ago(m.Meta.GetUpdatedAt()), ago(m.RotatedAt)}
		}),
		id:   (*musterv1.Secret).GetId,
		name: func(m *musterv1.Secret) string { return m.Spec.GetName() },
		hint: func(m *musterv1.Secret) string { return "rotated " + ago(m.RotatedAt) },
		examples: [3]string{
			"  muster secret ls\n  muster secret ls --filter label=team=web -q",
			"  muster secret inspect db-password",
			"  muster secret rm db-password",
		},
		removes: "Remove secrets that no service uses",
		list:    pages(api.ListSecrets, (*musterv1.ListSecretsResponse).GetSecrets),
		get:     byName(api.GetSecret, func(ref string) *musterv1.GetSecretRequest { return &musterv1.GetSecretRequest{Secret: ref} }, (*musterv1.GetSecretResponse).GetSecret),
		remove:  byName(api.RemoveSecret, func(ref string) *musterv1.RemoveSecretRequest { return &musterv1.RemoveSecretRequest{Secret: ref} }, nothing[*musterv1.RemoveSecretResponse]),
	}
	k.filters = commonFilters(k.names)
	return k
}

// maxSecret is the greatest length of a secret's data.
const maxSecret = 500 << 10

// secretSource is where a command reads the data of a secret.
type secretSource struct{ env string }

func (s *secretSource) add(cmd *cobra.Command) {
	cmd.Args = cobra.RangeArgs(1, 2)
	cmd.Flags().StringVar(&s.env, "from-env", "", "read the data from a variable of the environment instead of a file")
}

// read returns the data that the arguments after the name, or the flag, ask for.
func (s *secretSource) read(c *CLI, cmd *cobra.Command, args []string) ([]byte, error) {
	given := cmd.Flags().Changed("from-env")
	switch {
	case given == (len(args) == 1):
		return nil, usage("give either a file, \"-\" for standard input, or --from-env")
	case given:
		value, ok := os.LookupEnv(s.env)
		if !ok {
			return nil, usage("--from-env: the environment has no variable %q", s.env)
		}
		return []byte(value), nil
	}
	return c.readData(args[0], "secret", maxSecret)
}

func (c *CLI) secretCreate() *cobra.Command {
	var (
		labels []string
		source secretSource
	)
	cmd := &cobra.Command{
		Use: "create [flags] NAME [FILE|-]", Short: "Store a file, standard input or a variable as a secret",
		Long: `Store a file, standard input ("-") or a variable of the environment as a secret of 1 byte to 500 KiB, and print its id.

The data is stored byte for byte, with a line break at its end if there is one. It is sealed in the store with the
cluster's key, and no command shows it again.`,
		Example: `  muster secret create db-password ./password.txt
  openssl rand -base64 24 | tr -d '\n' | muster secret create --label team=web session-key -
  muster secret create --from-env API_TOKEN api-token`,
		RunE: func(cmd *cobra.Command, args []string) error {
			spec := &musterv1.SecretSpec{Name: args[0]}
			var err error
			if spec.Labels, err = parseLabels("label", labels); err != nil {
				return err
			}
			if spec.Data, err = source.read(c, cmd, args[1:]); err != nil {
				return err
			}
			resp, err := call(c, cmd, api.CreateSecret, &musterv1.CreateSecretRequest{Spec: spec})
			if err == nil {
				c.printf("%s\n", resp.Secret.Id)
			}
			return err
		},
	}
	source.add(cmd)
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "label, key=value (repeatable)")
	return cmd
}

func (c *CLI) secretRotate() *cobra.Command {
	var source secretSource
	cmd := &cobra.Command{
		Use: "rotate [flags] SECRET [FILE|-]", Short: "Give a secret other data",
		Long: `Give a secret other data: of a file, standard input ("-") or a variable of the environment.

Tasks that use the secret get the new data in the same file.`,
		Example: `  muster secret rotate db-password ./password.txt
  muster secret rotate --from-env API_TOKEN api-token`,
		RunE: func(cmd *cobra.Command, args []string) error {
			data, err := source.read(c, cmd, args[1:])
			if err != nil {
				return err
			}
			got, err := call(c, cmd, api.GetSecret, &musterv1.GetSecretRequest{Secret: args[0]})
			if err != nil {
				return err
			}
			_, err = call(c, cmd, api.RotateSecret, &musterv1.RotateSecretRequest{Secret: got.Secret.Id, Version: got.Secret.Meta.GetVersion(), Data: data})
			if err == nil {
				c.printf("%s\n", args[0])
			}
			return err
		},
	}
	source.add(cmd)
	return cmd
}

func (c *CLI) secretUpdate() *cobra.Command {
	return c.labelUpdate("secret", "muster secret rotate gives it other data", func(cmd *cobra.Command, ref string, add, remove []string) error {
		got, err := call(c, cmd, api.GetSecret, &musterv1.GetSecretRequest{Secret: ref})
		if err != nil {
			return err
		}
		spec := &musterv1.SecretSpec{Name: got.Secret.Spec.GetName(), Labels: got.Secret.Spec.GetLabels()}
		if err := changeLabels(spec, add, remove); err != nil {
			return err
		}
		_, err = call(c, cmd, api.UpdateSecret, &musterv1.UpdateSecretRequest{Secret: got.Secret.Id, Version: got.Secret.Meta.GetVersion(), Spec: spec})
		return err
	})
}
