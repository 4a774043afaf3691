package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/wait"
)

// TestWorkersOfOneMachineShareIt: workers within muster dev and one that was started by
// hand share the machine's host ports and its CPUs.
func TestWorkersOfOneMachineShareIt(t *testing.T) {
	s := startSite(t, siteConfig{embedded: true, devWorkers: 2, workers: []string{"alpha"}})
	nodes, err := s.listNodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	machine := nodes[0].Description.GetMachine()
	for _, n := range nodes {
		if m := n.Description.GetMachine(); m.GetId() == "" || m.GetId() != machine.GetId() {
			t.Errorf("node %s is on machine %q, another on %q", n.Description.GetHostname(), m.GetId(), machine.GetId())
		}
	}
	half := machine.GetShared().GetNanoCpus() / 2

	s.ok(t, "service", "create", "--name", "port", "--detach", "--replicas", "3", "--kind", "process",
		"--publish", "published=47123,target=80,mode=host", "--", "sleep", "1000000")
	s.awaitSome(t, "port", 1, "host port 47123/tcp in use on the machine of ")
	s.ok(t, "service", "create", "--name", "cpu", "--detach", "--replicas", "3", "--kind", "process",
		"--reserve-cpu", fmt.Sprint(float64(half)/1e9), "--", "sleep", "1000000")
	s.awaitSome(t, "cpu", 2, "insufficient CPU on ")
	for _, service := range []string{"port", "cpu"} {
		s.removeService(t, service)
	}
	s.awaitNoTasks(t)
}

// awaitSome waits until so many tasks of a service run, and the service says why the
// others wait.
func (s *site) awaitSome(t *testing.T, service string, n int, reason string) {
	t.Helper()
	wait.Within(t, runTimeout, fmt.Sprintf("%d tasks of %s run", n, service), func(ctx context.Context) error {
		resp, err := s.client.GetService(ctx, &musterv1.GetServiceRequest{Service: service})
		if err != nil {
			return err
		}
		st := resp.Service.Status
		if st.GetRunningTasks() != uint64(n) || !strings.Contains(st.GetPendingReason(), reason) {
			return fmt.Errorf("%d tasks run, others wait for %q", st.GetRunningTasks(), st.GetPendingReason())
		}
		return nil
	})
}
