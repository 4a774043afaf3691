package probes

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// mostProblems is how many problems of one kind are told.
const mostProblems = 5

// Sort orders checks by what was tried, task, node and target. A node makes its checks at
// the same time, so that they end in any order.
func Sort(checks []*musterv1.TestedConnection) {
	slices.SortStableFunc(checks, func(a, b *musterv1.TestedConnection) int {
		return cmp.Or(cmp.Compare(a.GetCheck().GetKind(), b.GetCheck().GetKind()), cmp.Compare(a.TaskName, b.TaskName),
			cmp.Compare(a.NodeName, b.NodeName), cmp.Compare(a.GetCheck().GetTarget(), b.GetCheck().GetTarget()))
	})
}

// Conclude says what is broken, and what to do about it, one line for each. It returns
// none if all is well. Reports are what the network plugins of nodes say of themselves, by
// the nodes' ids.
func Conclude(service, from string, checks []*musterv1.TestedConnection, reports map[string]string) []string {
	c := &conclusion{service: service, from: from, dead: map[string]bool{}}
	of := func(kind musterv1.NetworkCheck_Kind) (bad []*musterv1.TestedConnection, tried int) {
		for _, t := range checks {
			if t.GetCheck().GetKind() != kind || t.Check.Result == musterv1.NetworkCheck_SKIPPED {
				continue
			}
			tried++
			if t.Check.Result != musterv1.NetworkCheck_OK {
				bad = append(bad, t)
			}
		}
		return bad, tried
	}
	nodes, _ := of(musterv1.NetworkCheck_NODE)
	for _, t := range nodes {
		c.dead[t.Check.NodeId] = true
		if said := reports[t.Check.NodeId]; said != "" {
			c.say("node %s does not answer on its data path %s/udp: %s; its network plugin reports: %s (muster node inspect %s)",
				t.NodeName, t.Check.Target, t.Check.Message, said, t.NodeName)
			continue
		}
		c.say("node %s does not answer on its data path %s/udp: %s; open the port between the nodes in both directions, and see the messages of its network plugin (muster node inspect %s)",
			t.NodeName, t.Check.Target, t.Check.Message, t.NodeName)
	}
	tasks, tried := of(musterv1.NetworkCheck_TASK)
	if tried == 0 {
		c.say("service %s has no task that gets traffic on the network: tasks must run and be healthy (muster service ps %s)", service, service)
	}
	c.tasks(tasks)
	names, _ := of(musterv1.NetworkCheck_NAME)
	for _, t := range names {
		c.say("name %s: %s; see the log of the worker on node %s for its network plugin", t.Check.Target, t.Check.Message, from)
	}
	// A broken task explains a broken virtual address.
	for _, one := range []struct {
		kind musterv1.NetworkCheck_Kind
		what string
	}{{musterv1.NetworkCheck_VIRTUAL_ADDRESS, "virtual address"}, {musterv1.NetworkCheck_PUBLISHED_PORT, "published port"}} {
		bad, _ := of(one.kind)
		for _, t := range bad {
			if tried == 0 || len(tasks) > 0 {
				continue
			}
			c.say("%s %s: %s, although all tasks answer; see the messages of the network plugin on node %s (muster node inspect %s)",
				one.what, t.Check.Target, t.Check.Message, from, from)
		}
	}
	if len(c.lines) == 0 && slices.ContainsFunc(checks, func(t *musterv1.TestedConnection) bool {
		return t.GetCheck().GetResult() != musterv1.NetworkCheck_OK && t.GetCheck().GetResult() != musterv1.NetworkCheck_SKIPPED
	}) {
		c.say("some connections fail: see the list")
	}
	return c.lines
}

type conclusion struct {
	service, from string
	// dead are the nodes that do not answer.
	dead  map[string]bool
	lines []string
}

func (c *conclusion) say(format string, args ...any) {
	c.lines = append(c.lines, fmt.Sprintf(format, args...))
}

// tasks tells of tasks that are not reached for another reason than their node.
func (c *conclusion) tasks(bad []*musterv1.TestedConnection) {
	told := 0
	for _, t := range bad {
		if c.dead[t.Check.NodeId] {
			continue
		}
		if told++; told > mostProblems {
			continue
		}
		_, port, _ := strings.Cut(t.Check.Target[strings.LastIndexByte(t.Check.Target, ']')+1:], ":")
		switch t.Check.Result {
		case musterv1.NetworkCheck_REFUSED:
			c.say("task %s on node %s does not listen on port %s: start its program on 0.0.0.0, or publish the port that it listens on", t.TaskName, t.NodeName, port)
		case musterv1.NetworkCheck_NO_ANSWER:
			c.say("task %s on node %s does not answer at %s: its program may be stuck, or a firewall in the task drops packets (muster task inspect %s)",
				t.TaskName, t.NodeName, t.Check.Target, t.Check.TaskId)
		default:
			c.say("task %s on node %s is not reached at %s: %s; see the messages of the network plugin there (muster node inspect %s)",
				t.TaskName, t.NodeName, t.Check.Target, t.Check.Message, t.NodeName)
		}
	}
	if told > mostProblems {
		c.say("%d more tasks are not reached", told-mostProblems)
	}
}
