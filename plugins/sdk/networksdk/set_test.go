package networksdk_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

func TestSetInSeveralRequestsReachesThePluginAsOne(t *testing.T) {
	t.Parallel()
	plugin := &recorder{}
	server := networksdk.NewServer(plugin)
	apply := func(r *networkv1.ApplyRequest, wantCalls int) {
		t.Helper()
		response, err := server.Apply(t.Context(), r)
		if err != nil || len(response.GetErrors())+len(response.GetWarnings()) > 0 {
			t.Fatalf("Apply = %v, %v", response, err)
		}
		if len(plugin.applied) != wantCalls {
			t.Fatalf("the plugin got %d calls of Apply, want %d", len(plugin.applied), wantCalls)
		}
	}
	parts := func() (first, second, last *networkv1.ApplyRequest) {
		first, second, last = request(), request(), request()
		first.Services, first.Backends, first.More = nil, nil, true
		second.Networks, second.Peers, second.Backends, second.Complete, second.More = nil, nil, nil, false, true
		last.Networks, last.Peers, last.Services, last.Complete = nil, nil, nil, false
		return first, second, last
	}
	first, second, last := parts()
	apply(first, 0)
	apply(second, 0)
	if _, err := server.Attach(t.Context(), attach()); err == nil {
		t.Error("Attach succeeds before the set is complete")
	}
	apply(last, 1)
	if diff := cmp.Diff(request(), plugin.applied[0], protocmp.Transform()); diff != "" {
		t.Errorf("what the plugin got (-want +got):\n%s", diff)
	}
	if _, err := server.Attach(t.Context(), attach()); err != nil {
		t.Errorf("Attach: %v", err)
	}
	// A set that begins again replaces one that was not finished.
	first, _, _ = parts()
	apply(first, 1)
	apply(request(), 2)
	if diff := cmp.Diff(request(), plugin.applied[1], protocmp.Transform()); diff != "" {
		t.Errorf("what the plugin got (-want +got):\n%s", diff)
	}
}

func TestWarningsOfAPluginAreNotErrorsOfTheNetwork(t *testing.T) {
	t.Parallel()
	plugin := &recorder{failed: map[string]error{"net1": errors.Join(
		networksdk.Warning(errors.New("service web: address is taken")), networksdk.Warning(nil), networksdk.Warning(errors.New("peer node2: no route")),
	)}}
	response, err := networksdk.NewServer(plugin).Apply(t.Context(), request())
	if err != nil || len(response.GetErrors()) > 0 {
		t.Fatalf("Apply = %v, %v, want warnings only", response, err)
	}
	if w := response.GetWarnings(); len(w) != 1 || w[0].GetMessage() != "service web: address is taken (and 1 more)" {
		t.Errorf("warnings = %v", w)
	}
	plugin.failed["net1"] = errors.Join(networksdk.Warning(errors.New("service web: address is taken")), errors.New("no kernel module"))
	response, err = networksdk.NewServer(plugin).Apply(t.Context(), request())
	if err != nil || len(response.GetErrors()) != 1 || len(response.GetWarnings()) != 1 {
		t.Errorf("Apply = %v, %v, want an error and a warning", response, err)
	}
}
