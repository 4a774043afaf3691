//go:build linux

package overlay_test

import (
	"context"
	"net"
	"slices"
	"testing"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
)

func TestTasksResolveServices(t *testing.T) {
	_, machines := newMachines(t, 2)
	join(machines, "net", 4097, nil, func(r *networkv1.ApplyRequest) {
		r.Services = append(r.Services, &networkv1.Service{NetworkId: "net", Id: "web", Name: "web", Aliases: []string{"shop"}, VirtualIps: []string{"10.64.0.2"}})
	})
	join(machines, "other", 4098, nil, nil)
	a, b := machines[0].attach("a", "net="+at(1, 2)), machines[1].attach("b", "net="+at(2, 2))
	stranger := machines[0].attach("stranger", "other="+at(1, 2))
	b.serve(80)
	machines[0].apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{backends("net", "web", a, b)}})
	machines[0].apply(&networkv1.ApplyRequest{Backends: []*networkv1.Backends{{NetworkId: "net", ServiceId: "web", Removed: []string{"a"}}}})
	lookup := func(e *endpoint, name string) ([]string, error) {
		r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer(e.space)(ctx, network, "169.254.1.1:53")
		}}
		found, err := r.LookupHost(t.Context(), name+".")
		slices.Sort(found)
		return found, err
	}
	for name, want := range map[string]string{"web": "10.64.0.2", "shop": "10.64.0.2", "web.net": "10.64.0.2", "tasks.web": first(at(2, 2))} {
		if found, err := lookup(a, name); err != nil || len(found) == 0 || found[0] != want {
			t.Errorf("%s is %v: %v", name, found, err)
		}
	}
	if found, err := lookup(stranger, "web"); err == nil {
		t.Errorf("a task of another network got %v", found)
	}
	if server, _ := mustGet(t, a.space, "10.64.0.2:80"); server != "b" {
		t.Errorf("answered by %s", server)
	}
	t.Run("with a new process", func(t *testing.T) {
		m := machines[0]
		m.restart()
		m.apply(joinRequest(machines, 0, "net", 4097, nil, func(r *networkv1.ApplyRequest) {
			r.Complete = true
			r.Services = append(r.Services, &networkv1.Service{NetworkId: "net", Id: "web", Name: "web", VirtualIps: []string{"10.64.0.2"}})
		}))
		if found, err := lookup(a, "web"); err != nil || found[0] != "10.64.0.2" {
			t.Errorf("web is %v: %v", found, err)
		}
	})
	stats, err := machines[0].plugin.Stats(t.Context())
	must(t, err)
	if stats.GetDnsAnswers() == 0 {
		t.Error("no answer is counted")
	}
}
