package networks_test

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// test has a node try a service.
func (m *machines) test(ctx context.Context, req *musterv1.TestNetworkRequest) (resp *musterv1.TestNetworkResponse, err error) {
	err = m.Do(ctx, func(ctx context.Context, c musterv1.ControlServiceClient) error {
		resp, err = c.TestNetwork(ctx, req)
		return err
	})
	return resp, err
}

// firewall drops what a worker's machine gets on its data path port, or no longer does.
func (m *machines) firewall(worker string, drop bool) {
	m.t.Helper()
	rules := "delete table inet cut"
	if drop {
		rules = "add table inet cut; add chain inet cut input { type filter hook prerouting priority -400; }; add rule inet cut input udp dport 4789 drop"
	}
	args := append(m.hosts[worker].Command(), "nft", rules)
	out, err := exec.CommandContext(m.t.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("nft: %v\n%s", err, out)
	}
}

// wantProblems returns an error unless a test has such problems, each named by a part of its text.
func wantProblems(resp *musterv1.TestNetworkResponse, want ...string) error {
	if resp.Ok != (len(want) == 0) || len(resp.Problems) != len(want) {
		return fmt.Errorf("ok = %t, problems %q, want %q; tried %v", resp.Ok, resp.Problems, want, resp.Checks)
	}
	for i, part := range want {
		if !strings.Contains(resp.Problems[i], part) {
			return fmt.Errorf("problem %q, want %q", resp.Problems[i], part)
		}
	}
	return nil
}

func TestNetworkTestSaysWhereTheWayBreaks(t *testing.T) {
	m := start(t)
	m.network(&musterv1.NetworkSpec{Name: "back"})
	spec := publish(global(answers("web", 0, "back")), &musterv1.PortConfig{PublishMode: musterv1.PortConfig_INGRESS, PublishedPort: 8089})
	m.run(spec, len(workers))
	try := func(what string, req *musterv1.TestNetworkRequest, want ...string) (resp *musterv1.TestNetworkResponse) {
		t.Helper()
		m.eventually(what, func(ctx context.Context) (err error) {
			if resp, err = m.test(ctx, req); err != nil {
				return err
			}
			return wantProblems(resp, want...)
		})
		return resp
	}
	count := func(resp *musterv1.TestNetworkResponse) map[musterv1.NetworkCheck_Kind]int {
		all := map[musterv1.NetworkCheck_Kind]int{}
		for _, one := range resp.Checks {
			all[one.Check.Kind]++
		}
		return all
	}
	resp := try("all is well on the network", &musterv1.TestNetworkRequest{Service: "web"})
	if got := count(resp); got[musterv1.NetworkCheck_NAME] != 1 || got[musterv1.NetworkCheck_VIRTUAL_ADDRESS] != 1 ||
		got[musterv1.NetworkCheck_TASK] != len(workers) || got[musterv1.NetworkCheck_NODE] != len(workers)-1 {
		t.Errorf("tried %v", resp.Checks)
	}
	resp = try("all is well on the ingress network", &musterv1.TestNetworkRequest{Service: "web", Network: "ingress", Node: m.Nodes["two"]})
	if got := count(resp); got[musterv1.NetworkCheck_PUBLISHED_PORT] != 1 || resp.NodeId != m.Nodes["two"] {
		t.Errorf("tried from %s: %v", resp.NodeId, resp.Checks)
	}

	m.firewall("three", true)
	from := &musterv1.TestNetworkRequest{Service: "web", Network: "back", Node: m.Nodes["one"]}
	try("the node behind the firewall is named", from, "does not answer on its data path "+m.hosts["three"].Address+":4789/udp")
	m.firewall("three", false)
	try("all is well again", from)

	// Its tasks listen elsewhere than on the port that it publishes.
	deaf := global(answers("deaf", 0, "back"))
	deaf.Endpoint = &musterv1.EndpointSpec{Ports: []*musterv1.PortConfig{{TargetPort: 9999, PublishedPort: 8090}}}
	m.run(deaf, len(workers))
	bad := []string{"does not listen on port 9999", "does not listen on port 9999", "does not listen on port 9999"}
	try("the tasks that do not listen are named", &musterv1.TestNetworkRequest{Service: "deaf", Network: "back"}, bad...)

	for _, refused := range []struct {
		req  *musterv1.TestNetworkRequest
		want string
	}{
		{&musterv1.TestNetworkRequest{Service: "nope"}, "nope"},
		{&musterv1.TestNetworkRequest{Service: "web", Node: "nope"}, "nope"},
		{&musterv1.TestNetworkRequest{Service: "web", Network: "nope"}, "nope"},
	} {
		if _, err := m.test(t.Context(), refused.req); err == nil || !strings.Contains(err.Error(), refused.want) {
			t.Errorf("%v: %v, want an error about %q", refused.req, err, refused.want)
		}
	}
}
