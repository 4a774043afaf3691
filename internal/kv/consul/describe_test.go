package consul_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/test/kit/consultest"
)

// TestCatalogKnowsTheDead sees a process come, die and be told apart from one that
// lives and one that leaves.
func TestCatalogKnowsTheDead(t *testing.T) {
	t.Parallel()
	server := consultest.Start(t)
	s := server.KV(t)
	alive, _ := service(t, "alive")
	alive.Meta = map[string]string{"version": "v1"}
	dying, listener := service(t, "dying")
	leaving, _ := service(t, "leaving")
	openSession(t, s, alive)
	dead := openSession(t, s, dying)
	closeSession(t, openSession(t, s, leaving))
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	expectLost(t, dead)
	for deadline := time.Now().Add(patience); ; {
		processes, err := s.Processes(t.Context(), "test")
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(processes, func(a, b kv.Process) int { return strings.Compare(a.ID, b.ID) })
		if len(processes) == 2 && processes[0].ID == "alive" && processes[0].Alive && processes[0].Meta["version"] == "v1" &&
			processes[0].Address == alive.CheckAddress && !processes[1].Alive && processes[1].Reason != "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes = %+v, want one that lives and one that is dead", processes)
		}
	}
	if d, err := s.Describe(t.Context()); err != nil || d.Kind != "consul" || !slices.Contains(d.Servers, d.Leader) {
		t.Errorf("Describe = %+v, %v, want a leader among the servers", d, err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if d, err := s.Describe(t.Context()); !errors.Is(err, kv.ErrUnavailable) || d.Kind != "consul" {
		t.Errorf("Describe = %+v, %v without Consul, want its kind and ErrUnavailable", d, err)
	}
}
