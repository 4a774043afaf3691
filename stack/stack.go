// Package stack deploys stacks. It compares the spec of a stack with the cluster, applies
// the difference through the API, and removes stacks. A second deployment of the same spec
// changes nothing, and one that failed half-way is continued by the next.
//
// The cluster stores what was deployed as the revisions of the stack (kind "stack" of the
// API). Objects belong to a stack by the label [Label].
package stack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

const (
	// Label is on all objects of a stack. Its value is the stack's name.
	Label = musterv1.StackLabel
	// DigestLabel is on secrets of a stack. Its value is a digest of the data that reveals
	// nothing to those who cannot read the stack.
	DigestLabel = "muster.stack.digest"
)

var (
	// ErrNotFound says that there is neither a stack nor an object of it.
	ErrNotFound = errors.New("no such stack")
	// ErrConflict says that another client deployed other content of the stack, or removed
	// the stack, at the same time. Nothing needs to be undone: the stack is what the other
	// client makes it, and a new deployment begins with that.
	ErrConflict = errors.New("the stack was changed at the same time")
)

// Client is what this package needs of the API. A musterv1.ControlServiceClient is one.
type Client interface {
	CreateStack(context.Context, *musterv1.CreateStackRequest, ...grpc.CallOption) (*musterv1.CreateStackResponse, error)
	GetStack(context.Context, *musterv1.GetStackRequest, ...grpc.CallOption) (*musterv1.GetStackResponse, error)
	ListStacks(context.Context, *musterv1.ListStacksRequest, ...grpc.CallOption) (*musterv1.ListStacksResponse, error)
	ListStackRevisions(context.Context, *musterv1.ListStackRevisionsRequest, ...grpc.CallOption) (*musterv1.ListStackRevisionsResponse, error)
	GetStackRevision(context.Context, *musterv1.GetStackRevisionRequest, ...grpc.CallOption) (*musterv1.GetStackRevisionResponse, error)
	UpdateStack(context.Context, *musterv1.UpdateStackRequest, ...grpc.CallOption) (*musterv1.UpdateStackResponse, error)
	RemoveStack(context.Context, *musterv1.RemoveStackRequest, ...grpc.CallOption) (*musterv1.RemoveStackResponse, error)

	CreateService(context.Context, *musterv1.CreateServiceRequest, ...grpc.CallOption) (*musterv1.CreateServiceResponse, error)
	ListServices(context.Context, *musterv1.ListServicesRequest, ...grpc.CallOption) (*musterv1.ListServicesResponse, error)
	UpdateService(context.Context, *musterv1.UpdateServiceRequest, ...grpc.CallOption) (*musterv1.UpdateServiceResponse, error)
	RemoveService(context.Context, *musterv1.RemoveServiceRequest, ...grpc.CallOption) (*musterv1.RemoveServiceResponse, error)
	ListTasks(context.Context, *musterv1.ListTasksRequest, ...grpc.CallOption) (*musterv1.ListTasksResponse, error)
	CreateNetwork(context.Context, *musterv1.CreateNetworkRequest, ...grpc.CallOption) (*musterv1.CreateNetworkResponse, error)
	ListNetworks(context.Context, *musterv1.ListNetworksRequest, ...grpc.CallOption) (*musterv1.ListNetworksResponse, error)
	RemoveNetwork(context.Context, *musterv1.RemoveNetworkRequest, ...grpc.CallOption) (*musterv1.RemoveNetworkResponse, error)
	CreateConfig(context.Context, *musterv1.CreateConfigRequest, ...grpc.CallOption) (*musterv1.CreateConfigResponse, error)
	ListConfigs(context.Context, *musterv1.ListConfigsRequest, ...grpc.CallOption) (*musterv1.ListConfigsResponse, error)
	UpdateConfig(context.Context, *musterv1.UpdateConfigRequest, ...grpc.CallOption) (*musterv1.UpdateConfigResponse, error)
	RemoveConfig(context.Context, *musterv1.RemoveConfigRequest, ...grpc.CallOption) (*musterv1.RemoveConfigResponse, error)
	CreateSecret(context.Context, *musterv1.CreateSecretRequest, ...grpc.CallOption) (*musterv1.CreateSecretResponse, error)
	ListSecrets(context.Context, *musterv1.ListSecretsRequest, ...grpc.CallOption) (*musterv1.ListSecretsResponse, error)
	UpdateSecret(context.Context, *musterv1.UpdateSecretRequest, ...grpc.CallOption) (*musterv1.UpdateSecretResponse, error)
	RemoveSecret(context.Context, *musterv1.RemoveSecretRequest, ...grpc.CallOption) (*musterv1.RemoveSecretResponse, error)
}

// Summary is a stack with its services.
type Summary struct {
	Name string
	// Stack is what the cluster stores of it. Nil: the stack was made by other means, such
	// as Docker's CLI, and consists of the objects that have its label.
	Stack    *musterv1.Stack
	Services []*musterv1.Service
}

// List returns all stacks, in order of their names: those that are stored, and those that
// only have services.
func List(ctx context.Context, client Client) ([]Summary, error) {
	stacks, err := paged(func(token string) (*musterv1.ListStacksResponse, error) {
		return client.ListStacks(ctx, &musterv1.ListStacksRequest{PageSize: pageSize, PageToken: token})
	}, (*musterv1.ListStacksResponse).GetStacks)
	if err != nil {
		return nil, fmt.Errorf("list stacks: %w", err)
	}
	services, err := Services(ctx, client, "")
	if err != nil {
		return nil, err
	}
	all := map[string]*Summary{}
	for _, s := range stacks {
		all[s.Spec.GetName()] = &Summary{Name: s.Spec.GetName(), Stack: s}
	}
	for _, s := range services {
		name := s.Spec.GetLabels()[Label]
		if all[name] == nil {
			all[name] = &Summary{Name: name}
		}
		all[name].Services = append(all[name].Services, s)
	}
	list := make([]Summary, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, *all[name])
	}
	return list, nil
}

// Services returns the services of a stack, or of all stacks for "", in order of their
// names.
func Services(ctx context.Context, client Client, name string) ([]*musterv1.Service, error) {
	services, err := paged(func(token string) (*musterv1.ListServicesResponse, error) {
		return client.ListServices(ctx, &musterv1.ListServicesRequest{Labels: selector(name), PageSize: pageSize, PageToken: token})
	}, (*musterv1.ListServicesResponse).GetServices)
	if err != nil {
		return nil, fmt.Errorf("list services: %w", err)
	}
	slices.SortFunc(services, func(a, b *musterv1.Service) int { return cmp.Compare(a.Spec.GetName(), b.Spec.GetName()) })
	return services, nil
}

// History returns the revisions of a stack that are kept, newest first. ErrNotFound: the
// cluster stores no stack of this name.
func History(ctx context.Context, client Client, name string) ([]*musterv1.StackRevision, error) {
	s, err := find(ctx, client, name)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, fmt.Errorf("%w: %q has no revisions", ErrNotFound, name)
	}
	list, err := client.ListStackRevisions(ctx, &musterv1.ListStackRevisionsRequest{Stack: s.Id})
	if err != nil {
		return nil, fmt.Errorf("list revisions of stack %q: %w", name, err)
	}
	return list.Revisions, nil
}

// Revision returns a stack's content in a revision; 0 means the current one. The data of
// secrets is not kept. The caller needs the role operator.
func Revision(ctx context.Context, client Client, name string, number uint64) (*musterv1.StackSpec, error) {
	s, err := find(ctx, client, name)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, fmt.Errorf("%w: %q has no revisions", ErrNotFound, name)
	}
	r, err := client.GetStackRevision(ctx, &musterv1.GetStackRevisionRequest{Stack: s.Id, Revision: number})
	if err != nil {
		return nil, fmt.Errorf("read revision of stack %q: %w", name, err)
	}
	return r.Spec, nil
}

// Rollback deploys a former revision of a stack again, as its next revision. Secrets keep
// the data that they have, unless the former object still exists.
func Rollback(ctx context.Context, client Client, name string, revision uint64, opt Options) (*Result, error) {
	spec, err := Revision(ctx, client, name, revision)
	if err != nil {
		return nil, err
	}
	opt.Message = cmp.Or(opt.Message, fmt.Sprintf("rollback to revision %d", revision))
	return Deploy(ctx, client, spec, opt)
}

// find returns the stack of a name as it is stored; nil if there is none.
func find(ctx context.Context, client Client, name string) (*musterv1.Stack, error) {
	resp, err := client.GetStack(ctx, &musterv1.GetStackRequest{Stack: name})
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read stack %q: %w", name, err)
	}
	// The name may also be the beginning of another stack's id.
	if !strings.EqualFold(resp.Stack.Spec.GetName(), name) {
		return nil, nil
	}
	return resp.Stack, nil
}

// objects are those of a cluster that matter to a stack.
type objects struct {
	services []*musterv1.Service
	networks []*musterv1.Network
	configs  []*musterv1.Config
	secrets  []*musterv1.Secret
	// networkNames holds the names of all networks by their ids.
	networkNames map[string]string
	// fileNames holds the names of all configs and secrets by their ids.
	fileNames map[string]string
}

func (o *objects) count() int {
	return len(o.services) + len(o.networks) + len(o.configs) + len(o.secrets)
}

const pageSize = 1000

// paged reads all pages of a list.
func paged[M any, R interface{ GetNextPageToken() string }](list func(token string) (R, error), items func(R) []M) ([]M, error) {
	var all []M
	for token := ""; ; {
		page, err := list(token)
		if err != nil {
			return nil, err
		}
		all = append(all, items(page)...)
		if token = page.GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}

func selector(name string) []string {
	if name == "" {
		return []string{Label}
	}
	return []string{Label + "=" + name}
}

// read returns the objects of a stack.
func read(ctx context.Context, client Client, name string) (*objects, error) {
	o := &objects{networkNames: map[string]string{}, fileNames: map[string]string{}}
	var err error
	if o.services, err = Services(ctx, client, name); err != nil {
		return nil, err
	}
	networks, err := paged(func(token string) (*musterv1.ListNetworksResponse, error) {
		return client.ListNetworks(ctx, &musterv1.ListNetworksRequest{PageSize: pageSize, PageToken: token})
	}, (*musterv1.ListNetworksResponse).GetNetworks)
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	for _, n := range networks {
		o.networkNames[n.Id] = n.Spec.GetName()
		if n.Spec.GetLabels()[Label] == name {
			o.networks = append(o.networks, n)
		}
	}
	configs, err := paged(func(token string) (*musterv1.ListConfigsResponse, error) {
		return client.ListConfigs(ctx, &musterv1.ListConfigsRequest{PageSize: pageSize, PageToken: token})
	}, (*musterv1.ListConfigsResponse).GetConfigs)
	if err != nil {
		return nil, fmt.Errorf("list configs: %w", err)
	}
	for _, c := range configs {
		o.fileNames[c.Id] = c.Spec.GetName()
		if c.Spec.GetLabels()[Label] == name {
			o.configs = append(o.configs, c)
		}
	}
	secrets, err := paged(func(token string) (*musterv1.ListSecretsResponse, error) {
		return client.ListSecrets(ctx, &musterv1.ListSecretsRequest{PageSize: pageSize, PageToken: token})
	}, (*musterv1.ListSecretsResponse).GetSecrets)
	if err != nil {
		return nil, fmt.Errorf("list secrets: %w", err)
	}
	for _, s := range secrets {
		o.fileNames[s.Id] = s.Spec.GetName()
		if s.Spec.GetLabels()[Label] == name {
			o.secrets = append(o.secrets, s)
		}
	}
	return o, nil
}
