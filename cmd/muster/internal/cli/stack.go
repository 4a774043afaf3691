package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/stack"
	"github.com/musterhq/muster/stack/compose"
)

func (c *CLI) stack() *cobra.Command {
	return group("stack", "Deploy compose files as stacks of services",
		c.stackDeploy(), c.stackPlan(), c.stackList(), c.stackServices(), c.stackTasks(), c.stackLogs(), c.stackHistory(), c.stackRollback(), c.stackRemove(), c.stackConfig())
}

// composeFlags say which compose files a command reads, and how.
type composeFlags struct {
	files, envFiles, profiles []string
	dir                       string
	ignore                    bool
}

func (f *composeFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringArrayVarP(&f.files, "compose-file", "c", nil, "compose file, or \"-\" for standard input; later files override earlier ones (repeatable; default: compose.yaml in this folder or one above)")
	fs.StringArrayVar(&f.envFiles, "env-file", nil, "file with variables for the compose files (repeatable; default: .env in the project directory)")
	fs.StringArrayVar(&f.profiles, "profile", nil, "active profile (repeatable)")
	fs.StringVar(&f.dir, "project-directory", "", "directory that relative paths start from (default: that of the first compose file)")
	fs.BoolVar(&f.ignore, "ignore-unsupported", false, "leave out keys that Muster does not support, and list them")
}

// load reads the compose files. Name is the stack's; if it is empty, the files say.
// Builds accepts services whose images are built here.
func (f *composeFlags) load(c *CLI, cmd *cobra.Command, name string, builds bool) (*compose.Result, error) {
	result, err := compose.Load(cmd.Context(), compose.Options{
		Files: f.files, Stdin: c.In, Name: name, WorkingDir: f.dir, EnvFiles: f.envFiles, Environment: os.Environ(),
		Profiles: f.profiles, IgnoreUnsupported: f.ignore, Builds: builds,
	})
	switch {
	case cmd.Context().Err() != nil:
		return nil, cmd.Context().Err()
	case err != nil:
		return nil, usage("%w", err)
	}
	for _, p := range result.Warnings {
		_, _ = fmt.Fprintf(c.Err, "warning: %s\n", printable(p.String()))
	}
	for _, p := range result.Ignored {
		if p.Unsupported {
			_, _ = fmt.Fprintf(c.Err, "ignored: %s\n", printable(p.String()))
		}
	}
	return result, nil
}

func (c *CLI) stackConfig() *cobra.Command {
	var (
		files    composeFlags
		format   string
		quiet    bool
		revision uint64
	)
	cmd := &cobra.Command{
		Use: "config [flags] [STACK]", Short: "Check compose files, and print them with everything filled in", Args: cobra.MaximumNArgs(1),
		Long: `Check compose files, and print them as one file: merged, with variables and defaults filled in. No cluster is asked.

--format json prints the stack as Muster stores it: whole specs of services, networks, configs and secrets. The data of
secrets is not printed. Values of environment variables are.

--revision prints a revision of STACK that the cluster keeps, instead of files.`,
		Example: `  muster stack config
  muster stack config --revision 3 shop
  muster stack config -c compose.yaml -c compose.production.yaml shop
  muster stack config --quiet && echo valid`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "yaml" && format != "json" {
				return usage("--format: %w", wantOneOf(format, []string{"yaml", "json"}))
			}
			spec, err := c.readStack(cmd, &files, optional(args), revision)
			if err != nil || quiet {
				return err
			}
			return c.printStack(spec, format)
		},
	}
	files.add(cmd)
	cmd.Flags().StringVar(&format, "format", "yaml", "yaml or json")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only check the files")
	cmd.Flags().Uint64Var(&revision, "revision", 0, "print this revision of the stack instead of files")
	return cmd
}

// readStack reads a stack from files, or the revision of one from the cluster.
func (c *CLI) readStack(cmd *cobra.Command, files *composeFlags, name string, revision uint64) (*musterv1.StackSpec, error) {
	if !cmd.Flags().Changed("revision") {
		result, err := files.load(c, cmd, name, true)
		if err != nil {
			return nil, err
		}
		return result.Spec, nil
	}
	if name == "" || revision == 0 || len(files.files) > 0 {
		return nil, usage("--revision: want no files, but STACK and a number from 1 on; `muster stack history` lists revisions")
	}
	client, err := c.stackClient()
	if err != nil {
		return nil, err
	}
	return stack.Revision(cmd.Context(), client, name, revision)
}

// printStack prints what a stack was made from, or its specs, without secrets.
func (c *CLI) printStack(spec *musterv1.StackSpec, format string) error {
	if format == "yaml" {
		c.printf("%s\n", strings.TrimRight(spec.Source, "\n"))
		return nil
	}
	b, err := toJSON(redacted(spec))
	if err != nil {
		return err
	}
	return c.printJSON(json.RawMessage(b))
}

// optional returns the argument that may be missing.
func optional(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// redacted returns a stack without its source, the data of secrets and the key of their digests.
func redacted(spec *musterv1.StackSpec) *musterv1.StackSpec {
	spec = proto.CloneOf(spec)
	spec.Source, spec.DigestKey = "", nil
	for _, secret := range spec.Secrets {
		secret.Data = nil
	}
	return spec
}
