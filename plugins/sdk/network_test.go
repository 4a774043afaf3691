package sdk_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/plugins/sdk"
)

// provider makes namespaces, and records the calls that it gets.
type provider struct {
	plain
	calls []string
}

func (p *provider) Prepare(context.Context, *sdk.Task, sdk.Handle) (sdk.Handle, error) {
	p.calls = append(p.calls, "prepare")
	return sdk.Handle("prepared"), nil
}

func (p *provider) Namespace(_ context.Context, ref sdk.Ref) (string, error) {
	p.calls = append(p.calls, "namespace of "+ref.TaskID+" "+string(ref.Handle))
	return "/run/netns/" + ref.TaskID, p.err
}

func (p *provider) SetNetwork(_ context.Context, task *sdk.Task, _ sdk.Handle, network *sdk.Network) error {
	p.calls = append(p.calls, "network of "+task.GetId()+" "+network.GetNamespace())
	return p.err
}

func (p *provider) Start(context.Context, *sdk.Task, sdk.Handle) (*sdk.Started, error) {
	p.calls = append(p.calls, "start")
	return nil, nil
}

func (p *provider) List(context.Context, string) ([]sdk.Listed, error) {
	return []sdk.Listed{{TaskID: "t", State: sdk.Prepared, Namespace: "/run/netns/t"}}, nil
}

func TestNetworkedTasksGetTheirNetworkBeforeStart(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		networked bool
		namespace string
		calls     []string
	}{
		"networked": {true, "/run/netns/t", []string{"prepare", "namespace of t prepared", "network of t /run/netns/t", "start"}},
		"plain":     {false, "", []string{"prepare", "start"}},
	} {
		p := &provider{}
		s, task := sdk.NewServer(p), &sdk.Task{Id: "t", Networked: test.networked}
		prepared, err := s.Prepare(t.Context(), &executorv1.PrepareRequest{Task: task})
		if err != nil || prepared.GetNetworkNamespace() != test.namespace {
			t.Errorf("%s: Prepare = %v, %v; want the namespace %q", name, prepared, err, test.namespace)
		}
		start := &executorv1.StartRequest{Task: task, Handle: prepared.GetHandle()}
		if test.networked {
			if _, err := s.Start(t.Context(), start); code(err) != codes.InvalidArgument {
				t.Errorf("%s: Start without a network = %v, want INVALID_ARGUMENT", name, err)
			}
			start.Network = &sdk.Network{Namespace: prepared.GetNetworkNamespace()}
		}
		if _, err := s.Start(t.Context(), start); err != nil {
			t.Errorf("%s: Start = %v", name, err)
		}
		if diff := cmp.Diff(test.calls, p.calls); diff != "" {
			t.Errorf("%s: calls (-want +got):\n%s", name, diff)
		}
		listed, err := s.List(t.Context(), &executorv1.ListRequest{})
		if err != nil || listed.GetTasks()[0].GetNetworkNamespace() != "/run/netns/t" {
			t.Errorf("%s: List = %v, %v; want the namespace", name, listed, err)
		}
	}
}

func TestNetworkFailuresFailPrepareAndStart(t *testing.T) {
	t.Parallel()
	p := &provider{plain: plain{err: sdk.NodeFault(errors.New("no privilege"))}}
	s, task := sdk.NewServer(p), &sdk.Task{Id: "t", Networked: true}
	if _, err := s.Prepare(t.Context(), &executorv1.PrepareRequest{Task: task}); code(err) != codes.FailedPrecondition {
		t.Errorf("Prepare = %v, want FAILED_PRECONDITION", err)
	}
	if _, err := s.Start(t.Context(), &executorv1.StartRequest{Task: task, Network: &sdk.Network{}}); code(err) != codes.FailedPrecondition {
		t.Errorf("Start = %v, want FAILED_PRECONDITION", err)
	}
	if slices.Contains(p.calls, "start") {
		t.Errorf("the task was started without its network: %q", p.calls)
	}
}

func TestExecutorsWithoutNetworksRefuseNetworkedTasks(t *testing.T) {
	t.Parallel()
	s, task := sdk.NewServer(&plain{}), &sdk.Task{Id: "t", Networked: true}
	if _, err := s.Prepare(t.Context(), &executorv1.PrepareRequest{Task: task}); code(err) != codes.Unimplemented {
		t.Errorf("Prepare = %v, want UNIMPLEMENTED", err)
	}
	if _, err := s.Start(t.Context(), &executorv1.StartRequest{Task: task, Network: &sdk.Network{}}); code(err) != codes.Unimplemented {
		t.Errorf("Start = %v, want UNIMPLEMENTED", err)
	}
}
