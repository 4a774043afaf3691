package contractv1_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/executor/contractv1"
)

func TestNetworksCrossTheContract(t *testing.T) {
	t.Parallel()
	plugin, err := null.New(null.Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	e := contractv1.FromServer(sdk.NewServer(plugin))
	task := &executor.Task{ID: "t1", NodeID: "n1", Networked: true}
	prepared, err := e.Prepare(t.Context(), task, nil)
	if err != nil || prepared.Namespace == "" {
		t.Fatalf("Prepare = %+v, %v; want a namespace", prepared, err)
	}
	network := &executor.TaskNetwork{
		Namespace: prepared.Namespace, Nameservers: []string{"169.254.1.1"}, Search: []string{"example.org"},
		Options: []string{"ndots:0"}, Hosts: []string{"10.64.1.2 db"},
	}
	if _, err := e.Start(t.Context(), task, prepared.Handle, network); err != nil {
		t.Fatal(err)
	}
	want := &sdk.Network{
		Namespace: prepared.Namespace, Nameservers: network.Nameservers, Search: network.Search, Options: network.Options, Hosts: network.Hosts,
	}
	if diff := cmp.Diff(want, plugin.Network("t1"), protocmp.Transform()); diff != "" {
		t.Errorf("network of the task (-want +got):\n%s", diff)
	}
	listed, err := e.List(t.Context(), "n1")
	if err != nil || len(listed) != 1 || listed[0].Namespace != prepared.Namespace {
		t.Errorf("List = %+v, %v; want the namespace %s", listed, err, prepared.Namespace)
	}
}
