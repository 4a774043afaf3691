package probes_test

import (
	"slices"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/probes"
)

func tried(kind musterv1.NetworkCheck_Kind, result musterv1.NetworkCheck_Result, target, task, node string) *musterv1.TestedConnection {
	return &musterv1.TestedConnection{
		Check:    &musterv1.NetworkCheck{Kind: kind, Result: result, Target: target, Message: "it broke", TaskId: task, NodeId: node},
		TaskName: task, NodeName: node,
	}
}

func TestConclusionNamesTheFirstHopThatBreaks(t *testing.T) {
	t.Parallel()
	const (
		ok, refused, silent, failed, skipped = musterv1.NetworkCheck_OK, musterv1.NetworkCheck_REFUSED, musterv1.NetworkCheck_NO_ANSWER,
			musterv1.NetworkCheck_FAILED, musterv1.NetworkCheck_SKIPPED
		name, virtual, published, task, node = musterv1.NetworkCheck_NAME, musterv1.NetworkCheck_VIRTUAL_ADDRESS, musterv1.NetworkCheck_PUBLISHED_PORT,
			musterv1.NetworkCheck_TASK, musterv1.NetworkCheck_NODE
	)
	for what, test := range map[string]struct {
		checks []*musterv1.TestedConnection
		want   []string
	}{
		"all is well": {[]*musterv1.TestedConnection{
			tried(name, ok, "web", "", ""), tried(virtual, ok, "10.0.0.1:80", "", ""), tried(task, ok, "10.0.1.1:80", "web.1", "n1"), tried(node, ok, "192.0.2.2:4789", "", "n2"),
		}, nil},
		"a node explains its tasks and the virtual address": {[]*musterv1.TestedConnection{
			tried(virtual, silent, "10.0.0.1:80", "", ""), tried(task, ok, "10.0.1.1:80", "web.1", "n1"), tried(task, silent, "10.0.2.1:80", "web.2", "n2"),
			tried(node, silent, "192.0.2.2:4789", "", "n2"),
		}, []string{"node n2 does not answer on its data path 192.0.2.2:4789/udp: it broke; open the port between the nodes in both directions, and see the messages of its network plugin (muster node inspect n2)"}},
		"a node whose plugin says why": {[]*musterv1.TestedConnection{
			tried(task, ok, "10.0.1.1:80", "web.1", "n1"), tried(node, silent, "192.0.2.3:4789", "", "n3"),
		}, []string{"node n3 does not answer on its data path 192.0.2.3:4789/udp: it broke; its network plugin reports: the kernel has no VXLAN (muster node inspect n3)"}},
		"a task does not listen": {[]*musterv1.TestedConnection{
			tried(virtual, refused, "10.0.0.1:80", "", ""), tried(task, refused, "[fd00::1]:80", "web.1", "n1"),
		}, []string{"task web.1 on node n1 does not listen on port 80: start its program on 0.0.0.0, or publish the port that it listens on"}},
		"a task is silent": {[]*musterv1.TestedConnection{
			tried(task, silent, "10.0.1.1:80", "web.1", "n1"),
		}, []string{"task web.1 on node n1 does not answer at 10.0.1.1:80: its program may be stuck, or a firewall in the task drops packets (muster task inspect web.1)"}},
		"no task": {[]*musterv1.TestedConnection{
			tried(name, failed, "web", "", ""), tried(virtual, refused, "10.0.0.1:80", "", ""), tried(task, skipped, "", "", ""),
		}, []string{
			"service web has no task that gets traffic on the network: tasks must run and be healthy (muster service ps web)",
			"name web: it broke; see the log of the worker on node n1 for its network plugin",
		}},
		"only the published port": {[]*musterv1.TestedConnection{
			tried(published, silent, "192.0.2.1:8080", "", "n1"), tried(task, ok, "10.0.1.1:80", "web.1", "n1"),
		}, []string{"published port 192.0.2.1:8080: it broke, although all tasks answer; see the messages of the network plugin on node n1 (muster node inspect n1)"}},
		"the virtual address comes before published ports": {[]*musterv1.TestedConnection{
			tried(published, silent, "192.0.2.1:8080", "", "n1"), tried(virtual, silent, "10.0.0.1:80", "", ""), tried(task, ok, "10.0.1.1:80", "web.1", "n1"),
		}, []string{
			"virtual address 10.0.0.1:80: it broke, although all tasks answer; see the messages of the network plugin on node n1 (muster node inspect n1)",
			"published port 192.0.2.1:8080: it broke, although all tasks answer; see the messages of the network plugin on node n1 (muster node inspect n1)",
		}},
	} {
		if got := probes.Conclude("web", "n1", test.checks, map[string]string{"n3": "the kernel has no VXLAN"}); !slices.Equal(got, test.want) {
			t.Errorf("%s:\n got %q\nwant %q", what, got, test.want)
		}
	}
}

func TestChecksHaveOneOrder(t *testing.T) {
	t.Parallel()
	const ok = musterv1.NetworkCheck_OK
	want := []*musterv1.TestedConnection{
		tried(musterv1.NetworkCheck_NAME, ok, "web", "", ""), tried(musterv1.NetworkCheck_TASK, ok, "10.0.1.1:80", "web.1", "n1"),
		tried(musterv1.NetworkCheck_TASK, ok, "10.0.1.1:81", "web.1", "n1"), tried(musterv1.NetworkCheck_TASK, ok, "10.0.2.1:80", "web.2", "n1"),
		tried(musterv1.NetworkCheck_NODE, ok, "192.0.2.2:4789", "", "n2"), tried(musterv1.NetworkCheck_NODE, ok, "192.0.2.3:4789", "", "n3"),
	}
	for range len(want) {
		got := slices.Concat(want[1:], want[:1])
		slices.Reverse(got)
		probes.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("order of checks: %v, want %v", got, want)
		}
		want = slices.Clone(got)
	}
}
