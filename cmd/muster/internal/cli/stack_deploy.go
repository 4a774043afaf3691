package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/stack"
	"github.com/musterhq/muster/stack/build"
	"github.com/musterhq/muster/stack/compose"
)

// bounded is a connection whose calls each end within the time that calls have.
type bounded struct{ grpc.ClientConnInterface }

func (b bounded) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return b.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
}

// stackClient returns a client for work that makes many calls.
func (c *CLI) stackClient() (musterv1.ControlServiceClient, error) {
	if _, err := c.client(); err != nil {
		return nil, err
	}
	return musterv1.NewControlServiceClient(bounded{c.conn}), nil
}

// deployment is what a command deploys, and how.
type deployment struct {
	files composeFlags
	build bool
	opt   stack.Options
	wait  wait
}

func (c *CLI) stackDeploy() *cobra.Command {
	d := deployment{wait: wait{rollout: true, completes: true}}
	cmd := &cobra.Command{
		Use: "deploy [flags] [STACK]", Short: "Deploy compose files as a stack, and wait until its services run", Args: cobra.MaximumNArgs(1),
		Long: `Deploy compose files as a stack, and wait until all of its services run or have completed (--detach: do not wait).

Only what differs from the cluster changes: a second deployment of the same files changes nothing, and one that was
interrupted is continued by the next. "muster stack plan" shows what would change. A config or secret with other data is
stored under a new name, the services that use it are updated, and the former one is removed once they run. Without STACK the
name is the key "name" of the files, or the name of their folder.

Each deployment with other content is a revision of the stack: "muster stack history" lists them, and "muster stack
rollback" returns to one.

--build builds images of services with the key "build" on the Docker Engine of this machine. The cluster must have one node,
which uses the same Engine.

` + waitHelp + "\n\n" + ExitCodes,
		Example: `  muster stack deploy shop
  muster stack deploy -c compose.yaml -c compose.production.yaml --prune --message "release 7" shop
  generate-compose | muster stack deploy -c - --detach shop`,
		RunE: func(cmd *cobra.Command, args []string) error {
			result, err := d.files.load(c, cmd, optional(args), d.build)
			if err != nil {
				return err
			}
			if err := c.buildImages(cmd.Context(), result); err != nil {
				return err
			}
			deployed, err := c.deploy(cmd, &d, result)
			if err != nil {
				return err
			}
			if len(deployed.Changes) == 0 {
				c.printf("nothing to change\n")
			}
			return c.finish(cmd.Context(), &d, result.Spec, deployed)
		},
	}
	d.files.add(cmd)
	fs := cmd.Flags()
	fs.BoolVar(&d.build, "build", false, "build images of services with the key \"build\"")
	fs.BoolVar(&d.opt.Prune, "prune", false, "remove objects of the stack that the compose files do not have")
	fs.StringVarP(&d.opt.Message, "message", "m", "", "message for the history of the stack")
	d.wait.addFlags(cmd)
	return cmd
}

// deploy makes the cluster what compose files say, and prints each change.
func (c *CLI) deploy(cmd *cobra.Command, d *deployment, result *compose.Result) (*stack.Result, error) {
	client, err := c.stackClient()
	if err != nil {
		return nil, err
	}
	if err := c.checkExternal(cmd, result.External); err != nil {
		return nil, err
	}
	d.opt.Progress = c.printChange
	return stack.Deploy(cmd.Context(), client, result.Spec, d.opt)
}

// finish waits until what was deployed runs, and removes former versions of configs and
// secrets.
func (c *CLI) finish(ctx context.Context, d *deployment, spec *musterv1.StackSpec, deployed *stack.Result) error {
	if d.wait.detach {
		return nil
	}
	if err := c.convergeAll(ctx, &d.wait, deployed.Services); err != nil {
		return err
	}
	client, err := c.stackClient()
	if err != nil {
		return err
	}
	return stack.Clean(ctx, client, spec, d.opt)
}

// printChange says what was done with an object.
func (c *CLI) printChange(change stack.Change) {
	if change.Action == stack.ActionKeep && change.Note == "" {
		return
	}
	done := map[stack.Action]string{
		stack.ActionCreate: "created", stack.ActionUpdate: "updated", stack.ActionRemove: "removed", stack.ActionKeep: "kept",
	}[change.Action]
	c.printf("%s %s %s%s\n", done, change.Kind, printable(change.Name), note(change))
}

// note returns the note of a change, in parentheses.
func note(change stack.Change) string {
	if change.Note == "" {
		return ""
	}
	return " (" + printable(change.Note) + ")"
}

// checkExternal checks that what compose files call external exists.
func (c *CLI) checkExternal(cmd *cobra.Command, external []compose.External) error {
	var errs []error
	for _, e := range external {
		var err error
		switch e.Kind {
		case compose.Network:
			_, err = call(c, cmd, networkKind().get, e.Name)
		case compose.Secret:
			_, err = call(c, cmd, secretKind().get, e.Name)
		case compose.Config:
			_, err = call(c, cmd, configKind().get, e.Name)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("external %s %q: %w", e.Kind, e.Name, err))
		}
	}
	return errors.Join(errs...)
}

// buildImages builds images, and gives them to the services that need them.
func (c *CLI) buildImages(ctx context.Context, result *compose.Result) error {
	if len(result.Builds) == 0 {
		return nil
	}
	client, err := c.stackClient()
	if err != nil {
		return err
	}
	nodes, err := client.ListNodes(ctx, &musterv1.ListNodesRequest{PageSize: pageSize})
	if err != nil {
		return err
	}
	if n := len(nodes.Nodes); n != 1 {
		var names []string
		for _, b := range result.Builds {
			names = append(names, b.Service)
		}
		return usage("the cluster has %d nodes, and an image that is built here reaches one: build and push the images of %s, for example with "+
			"\"docker compose build --push\", name them in image, and deploy without --build", n, strings.Join(names, ", "))
	}
	builder, err := build.New(ctx, c.Err)
	if err != nil {
		return err
	}
	defer func() { _ = builder.Close() }()
	for _, b := range result.Builds {
		image, err := builder.Build(ctx, b)
		if err != nil {
			return err
		}
		for _, s := range result.Spec.Services {
			if s.Name == b.Service {
				useImage(s.Task.GetContainer(), image)
			}
		}
	}
	return nil
}

// useImage has containers run an image that is on the node, and in no registry.
func useImage(container *musterv1.ContainerSpec, image string) {
	container.Image = image
	container.PullOptions = &musterv1.PullOptions{Policy: musterv1.PullOptions_NEVER}
}

// errChanges says that a deployment would change something.
var errChanges = errors.New("there are changes")

func (c *CLI) stackPlan() *cobra.Command {
	var (
		d      deployment
		format string
		exit   bool
	)
	cmd := &cobra.Command{
		Use: "plan [flags] [STACK]", Short: "Show what a deployment of compose files would change", Args: cobra.MaximumNArgs(1),
		Long: `Show what a deployment of compose files would change, object by object, in the order in which it is done. Nothing changes.

--format json prints an array of objects with action (create, update, remove or keep), kind, name, and the fields of an
update. --exit-code ends with exit code 8 if there are changes, and with 0 if there are none.

` + ExitCodes,
		Example: `  muster stack plan shop
  muster stack plan --prune --format json shop
  muster stack plan --exit-code shop || muster stack deploy shop`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "table" && format != "json" {
				return usage("--format: %w", wantOneOf(format, []string{"table", "json"}))
			}
			result, err := d.files.load(c, cmd, optional(args), false)
			if err != nil {
				return err
			}
			client, err := c.stackClient()
			if err != nil {
				return err
			}
			if err := c.checkExternal(cmd, result.External); err != nil {
				return err
			}
			plan, err := stack.Plan(cmd.Context(), client, result.Spec, d.opt)
			if err != nil {
				return err
			}
			changes, err := c.printPlan(plan, format)
			if err == nil && changes > 0 && exit {
				return errChanges
			}
			return err
		},
	}
	d.files.add(cmd)
	fs := cmd.Flags()
	fs.BoolVar(&d.opt.Prune, "prune", false, "plan to remove objects of the stack that the compose files do not have")
	fs.BoolVar(&exit, "exit-code", false, "end with exit code 8 if there are changes")
	fs.StringVar(&format, "format", "table", "table or json")
	return cmd
}

// printPlan prints a plan and returns the number of changes.
func (c *CLI) printPlan(plan []stack.Change, format string) (int, error) {
	t := &table{header: []string{"ACTION", "KIND", "NAME", "FIELDS"}}
	for _, change := range plan {
		if change.Action != stack.ActionKeep {
			t.add(string(change.Action), change.Kind, change.Name, strings.Join(change.Fields, ", ")+note(change))
		}
	}
	switch {
	case format == "json":
		if plan == nil {
			plan = []stack.Change{}
		}
		return len(t.rows), c.printJSON(plan)
	case len(t.rows) == 0:
		c.printf("nothing to change\n")
		return 0, nil
	}
	return len(t.rows), c.printTable(t)
}

func (c *CLI) stackRollback() *cobra.Command {
	d := deployment{wait: wait{rollout: true, completes: true}}
	cmd := &cobra.Command{
		Use: "rollback STACK [REVISION]", Short: "Return to a former revision of a stack, and wait until its services run", Args: cobra.RangeArgs(1, 2),
		Long: `Return to a former revision of a stack, without REVISION to the one before the current one, and wait until its services run
(--detach: do not wait). It becomes the newest revision, so that it can be undone in the same way. Objects that it does not
have are removed.

The data of secrets is not kept with revisions. A secret that has other data since keeps that, and is named in the output.

` + waitHelp + "\n\n" + ExitCodes,
		Example: `  muster stack history shop
  muster stack rollback shop
  muster stack rollback shop 3`,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.stackClient()
			if err != nil {
				return err
			}
			revision, err := rollbackTo(cmd.Context(), client, args)
			if err != nil {
				return err
			}
			d.opt.Prune, d.opt.Progress = true, c.printChange
			d.opt.Message = cmp.Or(d.opt.Message, fmt.Sprintf("rollback to revision %d", revision))
			spec, err := stack.Revision(cmd.Context(), client, args[0], revision)
			if err != nil {
				return err
			}
			deployed, err := stack.Deploy(cmd.Context(), client, spec, d.opt)
			if err != nil {
				return err
			}
			if len(deployed.Changes) == 0 {
				c.printf("nothing to change\n")
			}
			c.printf("%s is at revision %d, which has the content of revision %d\n", args[0], deployed.Stack.GetRevision().GetNumber(), revision)
			return c.finish(cmd.Context(), &d, spec, deployed)
		},
	}
	cmd.Flags().StringVarP(&d.opt.Message, "message", "m", "", "message for the history of the stack (default: which revision it was)")
	d.wait.addFlags(cmd)
	return cmd
}

// rollbackTo returns the revision to return to: the second argument, or the one before the
// current one.
func rollbackTo(ctx context.Context, client stack.Client, args []string) (uint64, error) {
	if len(args) > 1 {
		return parseRevision(args[1])
	}
	revisions, err := stack.History(ctx, client, args[0])
	if err != nil {
		return 0, err
	}
	if len(revisions) < 2 {
		return 0, usage("stack %q has no revision before the current one", args[0])
	}
	return revisions[1].Number, nil
}

func (c *CLI) stackRemove() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "rm STACK...", Aliases: []string{"remove", "down"}, Short: "Remove stacks, and wait until nothing is left of them", Args: cobra.MinimumNArgs(1),
		Long: `Remove the services, configs, secrets and networks of stacks, and wait until all of their tasks have stopped. Services that
depend on others stop before them. Volumes stay.

A removal that is interrupted is continued by the next one, or by a deployment of the stack.`,
		Example: "  muster stack rm shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.stackClient()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			return c.each(args, func(name string) error {
				err := stack.Remove(ctx, client, name, c.printChange)
				if err != nil && ctx.Err() != nil && cmd.Context().Err() == nil {
					return fmt.Errorf("%w after %v: stack %q is still being removed; `muster stack rm %s` waits on", errNotConverged, timeout, name, name)
				}
				return err
			})
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "stop waiting after this time, with exit code 6 (default: no limit)")
	return cmd
}
