package conformance_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/conformance"
	"github.com/musterhq/muster/plugins/handshake"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// networkFlaw is the variable that says how the test program, as a network plugin, breaks
// the contract. "none" does not.
const networkFlaw = "CONFORMANCE_TEST_NETWORK_FLAW"

// serveNetwork serves the tape with one flaw.
func serveNetwork(how string) {
	t := &tape{flaw: how, dir: sdk.StateDir(""), networks: map[string]bool{}}
	if how == "RestartBetweenCalls" {
		dir, err := os.MkdirTemp(t.dir, "forgotten")
		if err != nil {
			panic(err)
		}
		t.dir = dir
	}
	switch how {
	case "Probe":
		networksdk.Serve(&prober{t})
	case "Order", "InvalidRequests", "DiesWithItsHost", "InvalidPart", "SetInParts":
		// Without the SDK nothing is checked, and the end of the worker is not noticed.
		plugin.Serve(&plugin.ServeConfig{
			HandshakeConfig: handshake.Config(), VersionedPlugins: map[int]plugin.PluginSet{wire.ProtocolVersion: {"network": &bare{tape: t}}},
			GRPCServer: func(o []grpc.ServerOption) *grpc.Server { return grpc.NewServer(o...) },
		})
	default:
		networksdk.Serve(t)
	}
}

// tape is a network plugin that writes down what it should do, but for the one rule that
// it breaks.
type tape struct {
	flaw string
	dir  string

	mu       sync.Mutex
	node     string
	networks map[string]bool
	calls    int
	busy     int
}

func (t *tape) Describe(context.Context) (*networksdk.Description, error) {
	said := &networksdk.Description{Name: "tape", Version: "1", Healthy: true, Drivers: []string{"tape"}}
	if t.flaw == "Describe" {
		said.Version = ""
	}
	return said, nil
}

func (t *tape) Apply(_ context.Context, r *networksdk.ApplyRequest) (map[string]error, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.node = r.GetNode().GetId()
	failed := map[string]error{}
	if r.GetComplete() {
		if t.flaw != "Leftovers" {
			old, _ := filepath.Glob(filepath.Join(t.dir, "network-*"))
			for _, file := range old {
				_ = os.Remove(file)
			}
		}
		t.networks = map[string]bool{}
	}
	for _, n := range r.GetNetworks() {
		if n.GetDriver() != "tape" {
			if t.flaw == "FailingNetwork" {
				return nil, fmt.Errorf("driver %q?", n.GetDriver())
			}
			failed[n.GetId()] = errors.New("no such driver")
			continue
		}
		t.networks[n.GetId()] = true
		if err := os.WriteFile(filepath.Join(t.dir, "network-"+n.GetId()), nil, 0o600); err != nil {
			return nil, err
		}
	}
	for _, id := range r.GetRemovedNetworks() {
		delete(t.networks, id)
		_ = os.Remove(filepath.Join(t.dir, "network-"+id))
	}
	return failed, nil
}

// enter counts a call that runs.
func (t *tape) enter() (calls, busy int, leave func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.calls++
	t.busy++
	return t.calls, t.busy, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.busy--
	}
}

func (t *tape) Attach(ctx context.Context, r *networksdk.AttachRequest) (*networksdk.AttachResponse, error) {
	calls, busy, leave := t.enter()
	defer leave()
	half := filepath.Join(t.dir, "half-"+r.GetTaskId())
	switch t.flaw {
	case "ManyAtOnce":
		if busy > 1 {
			return nil, errors.New("one at a time, please")
		}
		time.Sleep(50 * time.Millisecond)
	case "KilledAtAnyMoment", "GivenUp":
		if _, err := os.Stat(half); err == nil {
			return nil, errors.New("it is being attached already")
		}
		if err := os.WriteFile(half, nil, 0o600); err != nil {
			return nil, err
		}
		time.Sleep(20 * time.Millisecond)
		if t.flaw == "GivenUp" && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		_ = os.Remove(half)
	}
	if _, err := os.Stat(r.GetNamespace()); err != nil && t.flaw != "FailingNamespace" {
		return nil, err
	}
	response := &networksdk.AttachResponse{}
	for i, a := range r.GetAttachments() {
		if !t.networks[a.GetNetworkId()] {
			return nil, sdk.Failed(errors.New("no such network"))
		}
		a.Interface = fmt.Sprintf("eth%d", i)
		if t.flaw == "RepeatedCalls" {
			a.Interface = fmt.Sprintf("eth%d", calls)
		}
		if t.flaw == "Lifecycle" {
			a.Addresses = nil
		}
		response.Attachments = append(response.Attachments, a)
	}
	raw, err := json.Marshal(r.GetNamespace())
	if err != nil {
		return nil, err
	}
	return response, os.WriteFile(t.file(t.node, r.GetTaskId()), raw, 0o600)
}

func (t *tape) file(node, task string) string {
	return filepath.Join(t.dir, "task-"+node+"-"+filepath.Base(task))
}

func (t *tape) Detach(_ context.Context, task string) error {
	found, err := filepath.Glob(t.file("*", task))
	if err != nil {
		return err
	}
	if len(found) == 0 && t.flaw == "UnknownIDs" {
		return errors.New("no such task")
	}
	for _, file := range found {
		var namespace string
		raw, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(raw, &namespace)
		}
		if _, missing := os.Stat(namespace); missing != nil && t.flaw == "GoneNamespace" {
			return missing
		}
		if err := errors.Join(err, os.Remove(file)); err != nil {
			return err
		}
	}
	return nil
}

func (t *tape) List(_ context.Context, node string) ([]string, error) {
	if t.flaw == "ListByNode" {
		node = "*"
	}
	found, err := filepath.Glob(t.file(node, "*"))
	for i, file := range found {
		found[i] = file[strings.LastIndexByte(file, '-')+1:]
	}
	return found, err
}

func (t *tape) Stats(context.Context) (*networksdk.Stats, error) {
	tasks, err := t.List(context.Background(), "*")
	stats := &networksdk.Stats{Networks: uint64(len(t.networks)), AttachedTasks: uint64(len(tasks))}
	if t.flaw == "Stats" {
		stats = nil
	}
	return stats, err
}

// prober is a tape that does not say what it has tried.
type prober struct{ *tape }

func (*prober) Probe(context.Context, *networksdk.ProbeRequest) (string, []*networksdk.Check, error) {
	return "", []*networksdk.Check{{}}, nil
}

// bare serves the tape without the SDK.
type bare struct {
	networkv1.UnimplementedNetworkServiceServer
	plugin.NetRPCUnsupportedPlugin
	tape *tape
}

func (b *bare) GRPCServer(_ *plugin.GRPCBroker, server *grpc.Server) error {
	networkv1.RegisterNetworkServiceServer(server, b)
	return nil
}

func (*bare) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("it is the server's side")
}

func (b *bare) Describe(ctx context.Context, _ *networkv1.DescribeRequest) (*networkv1.DescribeResponse, error) {
	return b.tape.Describe(ctx)
}

func (b *bare) Apply(ctx context.Context, r *networkv1.ApplyRequest) (*networkv1.ApplyResponse, error) {
	_, err := b.tape.Apply(ctx, r)
	return &networkv1.ApplyResponse{}, err
}

func (b *bare) Attach(ctx context.Context, r *networkv1.AttachRequest) (*networkv1.AttachResponse, error) {
	return b.tape.Attach(ctx, r)
}

func (b *bare) Detach(ctx context.Context, r *networkv1.DetachRequest) (*networkv1.DetachResponse, error) {
	return &networkv1.DetachResponse{}, b.tape.Detach(ctx, r.GetTaskId())
}

func (b *bare) List(ctx context.Context, r *networkv1.ListRequest) (*networkv1.ListResponse, error) {
	ids, err := b.tape.List(ctx, r.GetNodeId())
	return &networkv1.ListResponse{TaskIds: ids}, err
}

// tryNetwork tries the test program with a flaw.
func tryNetwork(t *testing.T, how string, options conformance.NetworkOptions, rules ...string) []conformance.Result {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	results, err := conformance.Try(t.Context(), conformance.Options{
		Command: []string{self}, Env: []string{networkFlaw + "=" + how, "GORACE=atexit_sleep_ms=0"}, Network: &options, Rules: rules,
		Patience: 30 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return results
}

// Each rule is found broken by a network plugin that breaks it.
func TestFlawsOfNetworkPluginsAreFound(t *testing.T) {
	t.Parallel()
	for _, rule := range conformance.NetworkRules() {
		t.Run(rule.Name, func(t *testing.T) {
			t.Parallel()
			results := tryNetwork(t, rule.Name, conformance.NetworkOptions{}, rule.Name)
			if len(results) != 1 || results[0].Rule != rule.Name || results[0].Outcome != conformance.Broken || len(results[0].Faults) == 0 {
				t.Fatalf("results = %+v, want the rule broken", results)
			}
			t.Logf("%q", results[0].Faults)
		})
	}
}

func TestNetworkPluginWithoutFlawKeepsAllRules(t *testing.T) {
	t.Parallel()
	for _, result := range tryNetwork(t, "none", conformance.NetworkOptions{}) {
		if result.Outcome != conformance.Kept {
			t.Errorf("%+v", result)
		}
		if slices.Contains([]string{"Lifecycle", "RestartBetweenCalls"}, result.Rule) && len(result.Untried) != 2 {
			t.Errorf("%s does not say what was not tried: %q", result.Rule, result.Untried)
		}
	}
}

// A plugin that says that it has attached a task, and has not, is found where the
// namespace can be looked at.
func TestNamespacesAreLookedAt(t *testing.T) {
	t.Parallel()
	if err := conformance.CanMakeNamespaces(); err != nil {
		t.Skipf("network namespaces cannot be made here: %v", err)
	}
	results := tryNetwork(t, "none", conformance.NetworkOptions{Namespaces: true}, "Lifecycle")
	if results[0].Outcome != conformance.Broken || !strings.Contains(strings.Join(results[0].Faults, "\n"), `the namespace has no interface "eth0"`) {
		t.Errorf("results = %+v, want the missing interface to be found", results)
	}
}

func TestKindOfPluginIsRecognised(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		env  string
		want bool
	}{"network plugin": {networkFlaw + "=none", true}, "executor": {flaw + "=none", false}, "neither": {flaw + "=Starts", false}} {
		if got := conformance.IsNetwork(t.Context(), []string{self}, []string{test.env}); got != test.want {
			t.Errorf("%s: IsNetwork = %t, want %t", name, got, test.want)
		}
	}
}
