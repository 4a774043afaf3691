package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/terminal"
	"github.com/musterhq/muster/stack"
	"github.com/musterhq/muster/stack/compose"
)

// downTimeout bounds the removal of a stack when "up" ends. It covers the stop grace
// periods of a few services that depend on each other.
const downTimeout = 2 * time.Minute

func (c *CLI) up() *cobra.Command {
	d := deployment{wait: wait{rollout: true, completes: true, keep: true}}
	var noBuild bool
	cmd := &cobra.Command{
		Use: "up [flags] [STACK]", Short: "Run compose files until Ctrl-C: deploy them, show their output, and remove them", Args: cobra.MaximumNArgs(1),
		Long: `Run the compose file of this folder as a stack: build its images, deploy it, show the output of its services, and remove it
when Ctrl-C is pressed. A second Ctrl-C ends the command at once.

If no cluster answers at the address, and it is one of this machine, a cluster is started there in memory ("muster dev"). It
ends with this command, and so does all that it runs; volumes stay. Other terminals can use it meanwhile: "muster stack ps".

A stack that exists already is left alone: "muster stack deploy" changes it. Services whose tasks fail are retried until the
command ends.

` + ExitCodes,
		Example: `  muster up
  muster up -c compose.yaml -c compose.dev.yaml
  muster up --address 127.0.0.1:7800 shop`,
		RunE: func(cmd *cobra.Command, args []string) error {
			result, err := d.files.load(c, cmd, optional(args), !noBuild)
			if err != nil {
				return err
			}
			// Output of services and progress share the terminal: no line is redrawn.
			c.Terminal = false
			return c.withCluster(cmd.Context(), func(ctx context.Context) error {
				cmd.SetContext(ctx)
				return c.runStack(cmd, &d, result)
			})
		},
	}
	d.files.add(cmd)
	cmd.Flags().BoolVar(&noBuild, "no-build", false, "use images as they are, and build none")
	return cmd
}

// runStack deploys a stack, shows its output until the command ends, and removes it.
func (c *CLI) runStack(cmd *cobra.Command, d *deployment, result *compose.Result) (err error) {
	client, err := c.stackClient()
	if err != nil {
		return err
	}
	name := result.Spec.Name
	switch exists, err := stackExists(cmd.Context(), client, name); {
	case err != nil:
		return err
	case exists:
		return status.Errorf(codes.AlreadyExists, "stack %q exists already: `muster stack deploy` changes it, and `muster stack rm %s` removes it", name, name)
	}
	if err := c.buildImages(cmd.Context(), result); err != nil {
		return err
	}
	defer func() { err = c.takeDown(cmd.Context(), client, name, err) }()
	deployed, err := c.deploy(cmd, d, result)
	if err != nil {
		return err
	}
	return c.showStack(cmd.Context(), d, deployed.Services)
}

// stackExists reports whether there is a stack of a name, or a service of one.
func stackExists(ctx context.Context, client stack.Client, name string) (bool, error) {
	_, err := stack.History(ctx, client, name)
	if err == nil || !errors.Is(err, stack.ErrNotFound) {
		return err == nil, err
	}
	services, err := stack.Services(ctx, client, name)
	return len(services) > 0, err
}

// showStack shows the output of services and how far they are, until ctx ends.
func (c *CLI) showStack(ctx context.Context, d *deployment, services []*musterv1.Service) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var waiting sync.WaitGroup
	defer waiting.Wait()
	waiting.Go(func() {
		if err := c.convergeAll(ctx, &d.wait, services); err == nil {
			_, _ = fmt.Fprintln(c.Err, "all services run; Ctrl-C removes them")
		} else if ctx.Err() == nil {
			text, _ := c.Explain(err)
			_, _ = fmt.Fprintf(c.Err, "%s\nCtrl-C removes the stack\n", terminal.Text(text))
		}
	})
	options, err := (&logOptions{follow: true, tail: "all"}).request()
	if err != nil {
		return err
	}
	err = c.mergeLogs(ctx, &logOptions{}, options, services)
	if err == nil && ctx.Err() == nil {
		// The services were removed by another client.
		return errors.New("the services of the stack were removed")
	}
	return err
}

// takeDown removes a stack when the command ends, because it was interrupted or because
// something failed.
func (c *CLI) takeDown(ctx context.Context, client stack.Client, name string, why error) error {
	interrupted := ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled)
	if interrupted {
		_, _ = fmt.Fprintln(c.Err, "removing the stack; interrupt again to stop at once")
		why = nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
	defer cancel()
	err := stack.Remove(ctx, client, name, c.printChange)
	if errors.Is(err, stack.ErrNotFound) {
		err = nil
	}
	return errors.Join(why, err)
}
