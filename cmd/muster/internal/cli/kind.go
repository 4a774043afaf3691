package cli

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// kind is what the commands ls, inspect and rm, and completion, need to know of a kind
// of objects. M is an object's message and Q the request for a list.
type kind[M, Q proto.Message] struct {
	// noun is the kind's command.
	noun string
	// table shows objects in rows, for ls or for inspect.
	table func(objects []M, inspect bool) *table
	// about is the long help of ls, if it has one.
	about string
	// id and name are what users call an object by, and hint is what completion shows
	// beside the name.
	id, name, hint func(m M) string
	// filters are the keys of --filter.
	filters []filter
	// examples are those of ls, inspect and rm.
	examples [3]string
	// removes says in a few words what rm does, and removeFlags adds its flags.
	removes     string
	removeFlags func(fs *pflag.FlagSet)

	list   func(ctx context.Context, client musterv1.ControlServiceClient, req Q, options ...grpc.CallOption) (page[M], error)
	get    func(ctx context.Context, client musterv1.ControlServiceClient, ref string, options ...grpc.CallOption) (M, error)
	remove func(ctx context.Context, client musterv1.ControlServiceClient, ref string, options ...grpc.CallOption) error
}

// page is one page of a list.
type page[M any] struct {
	items []M
	next  string
}

// request returns an empty request for a list.
func (k *kind[M, Q]) request() Q {
	var none Q
	req, _ := none.ProtoReflect().New().Interface().(Q)
	setField(req, "page_size", protoreflect.ValueOfUint32(pageSize))
	return req
}

// setField sets a field of a request by its name in the contract.
func setField(req proto.Message, name protoreflect.Name, v protoreflect.Value) {
	m := req.ProtoReflect()
	m.Set(m.Descriptor().Fields().ByName(name), v)
}

// listAll returns the objects of all pages.
func (k *kind[M, Q]) listAll(cmd *cobra.Command, client musterv1.ControlServiceClient, req Q) ([]M, error) {
	return all(func(token string) ([]M, string, error) {
		setField(req, "page_token", protoreflect.ValueOfString(token))
		got, err := call(cmd, func(ctx context.Context, req Q, options ...grpc.CallOption) (page[M], error) {
			return k.list(ctx, client, req, options...)
		}, req)
		return got.items, got.next, err
	})
}

// getOne returns the object that a reference means.
func (k *kind[M, Q]) getOne(cmd *cobra.Command, client musterv1.ControlServiceClient, ref string) (M, error) {
	return call(cmd, func(ctx context.Context, ref string, options ...grpc.CallOption) (M, error) {
		return k.get(ctx, client, ref, options...)
	}, ref)
}

// rows makes the table of a kind whose columns are the same for ls and inspect.
func rows[M any](columns []string, cells func(m M) []string) func([]M, bool) *table {
	return func(objects []M, _ bool) *table {
		t := &table{header: columns}
		for _, m := range objects {
			t.add(cells(m)...)
		}
		return t
	}
}

// names completes with the names of the objects.
func (k *kind[M, Q]) names(ctx context.Context, client musterv1.ControlServiceClient) []cobra.Completion {
	first, err := k.list(ctx, client, k.request())
	if err != nil {
		return nil
	}
	var names []cobra.Completion
	for _, m := range first.items {
		names = append(names, cobra.CompletionWithDesc(k.name(m), k.hint(m)))
	}
	return names
}

// listCommand is ls.
func listCommand[M, Q proto.Message](c *CLI, k *kind[M, Q]) *cobra.Command {
	var (
		o       output
		filters []string
	)
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List " + k.noun + "s", Long: k.about, Args: cobra.NoArgs, Example: k.examples[0],
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := k.request()
			if err := setFilters(filters, k.filters, req); err != nil {
				return err
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			objects, err := k.listAll(cmd, client, req)
			if err != nil {
				return err
			}
			slices.SortStableFunc(objects, func(a, b M) int { return strings.Compare(k.name(a)+"\x00"+k.id(a), k.name(b)+"\x00"+k.id(b)) })
			return show(c, &o, objects, k.id, func() *table { return k.table(objects, false) })
		},
	}
	o.addFlags(cmd, true)
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, filterHelp(k.filters, "again for more"))
	return cmd
}

// inspectCommand is inspect.
func inspectCommand[M, Q proto.Message](c *CLI, k *kind[M, Q]) *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "inspect " + strings.ToUpper(k.noun) + "...", Short: "Show " + k.noun + "s whole", Args: cobra.MinimumNArgs(1), Example: k.examples[1],
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			objects, err := getAll(args, func(ref string) (M, error) { return k.getOne(cmd, client, ref) })
			if err != nil {
				return err
			}
			return show(c, &o, objects, nil, func() *table { return k.table(objects, true) })
		},
	}
	o.addInspectFlags(cmd)
	return cmd
}

// removeCommand is rm.
func removeCommand[M, Q proto.Message](c *CLI, k *kind[M, Q]) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm " + strings.ToUpper(k.noun) + "...", Aliases: []string{"remove"}, Short: k.removes, Args: cobra.MinimumNArgs(1), Example: k.examples[2],
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			return c.each(args, func(ref string) error {
				_, err := call(cmd, func(ctx context.Context, ref string, options ...grpc.CallOption) (any, error) {
					return nil, k.remove(ctx, client, ref, options...)
				}, ref)
				return err
			})
		},
	}
	if k.removeFlags != nil {
		k.removeFlags(cmd.Flags())
	}
	return cmd
}

// each does something to each object that is named, and prints the names of those for
// which it succeeded.
func (c *CLI) each(refs []string, do func(ref string) error) error {
	var errs []error
	for _, ref := range refs {
		if err := do(ref); err != nil {
			errs = append(errs, err)
			continue
		}
		c.printf("%s\n", ref)
	}
	return errors.Join(errs...)
}
