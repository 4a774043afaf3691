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

	list   method[Q, page[M]]
	get    method[string, M]
	remove method[string, any]
}

// page is one page of a list.
type page[M any] struct {
	items []M
	next  string
}

// pages makes the list of a kind of a method of the API.
func pages[M, Req any, Resp interface{ GetNextPageToken() string }](m method[Req, Resp], items func(Resp) []M) method[Req, page[M]] {
	return func(client api, ctx context.Context, req Req, options ...grpc.CallOption) (page[M], error) {
		resp, err := m(client, ctx, req, options...)
		return page[M]{items(resp), resp.GetNextPageToken()}, err
	}
}

// byName makes a function that takes the name of an object of a method of the API.
func byName[M, Req, Resp any](m method[Req, Resp], request func(ref string) Req, object func(Resp) M) method[string, M] {
	return func(client api, ctx context.Context, ref string, options ...grpc.CallOption) (M, error) {
		resp, err := m(client, ctx, request(ref), options...)
		return object(resp), err
	}
}

// nothing is what a removal returns.
func nothing[Resp any](Resp) any { return nil }

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
func (k *kind[M, Q]) listAll(c *CLI, cmd *cobra.Command, req Q) ([]M, error) {
	return readAll(req, func(req Q) (page[M], error) { return call(c, cmd, k.list, req) })
}

// readAll returns the items of all pages of a list.
func readAll[M any, Q proto.Message](req Q, read func(Q) (page[M], error)) ([]M, error) {
	var items []M
	for {
		got, err := read(req)
		if err != nil {
			return nil, err
		}
		items = append(items, got.items...)
		if got.next == "" {
			return items, nil
		}
		setField(req, "page_token", protoreflect.ValueOfString(got.next))
	}
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
func (k *kind[M, Q]) names(ctx context.Context, client api) []cobra.Completion {
	first, _ := k.list(client, ctx, k.request())
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
			objects, err := k.listAll(c, cmd, req)
			if err != nil {
				return err
			}
			slices.SortStableFunc(objects, func(a, b M) int { return strings.Compare(k.name(a)+"\x00"+k.id(a), k.name(b)+"\x00"+k.id(b)) })
			return show(c, &o, objects, k.id, func() *table { return k.table(objects, false) })
		},
	}
	o.addFlags(cmd, true)
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, filterHelp(k.filters, "repeatable"))
	_ = cmd.RegisterFlagCompletionFunc("filter", c.completeFilters(k.filters, k.request())) // the flag exists
	return cmd
}

// inspectCommand is inspect.
func inspectCommand[M, Q proto.Message](c *CLI, k *kind[M, Q]) *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use: "inspect " + strings.ToUpper(k.noun) + "...", Short: "Show " + k.noun + "s in full", Args: cobra.MinimumNArgs(1), Example: k.examples[1],
		ValidArgsFunction: c.fromCluster(k.names),
		RunE: func(cmd *cobra.Command, args []string) error {
			objects, err := getAll(args, func(ref string) (M, error) { return call(c, cmd, k.get, ref) })
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
		ValidArgsFunction: c.fromCluster(k.names),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.each(args, func(ref string) error {
				_, err := call(c, cmd, k.remove, ref)
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
