//go:build linux

package resident

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/internal/durable"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

// largest is the size of the largest message in these tests, and half of it that of a part.
const largest = 4000

// manyServices returns a complete set of many times the size of a message.
func manyServices() (set *networkv1.ApplyRequest, ids []string) {
	set = &networkv1.ApplyRequest{Complete: true, Node: &networkv1.Node{Id: "node"}}
	set.Networks = []*networkv1.Network{{Id: "net", Name: "net", Driver: "overlay", Subnets: []string{"10.64.0.0/16"}, NodeAddresses: []string{"10.64.0.1"}}}
	for i := range 10 * largest / 50 {
		id := fmt.Sprintf("service-%06d", i)
		ids = append(ids, id)
		set.Services = append(set.Services, &networkv1.Service{NetworkId: "net", Id: id, Name: id})
	}
	return set, ids
}

// told keeps the services of which a process is told.
type told struct {
	networksdk.Plugin
	version string
	ids     []string
}

func (p *told) Describe(context.Context) (*networkv1.DescribeResponse, error) {
	return &networkv1.DescribeResponse{Name: "overlay", Version: p.version, Healthy: true}, nil
}

func (p *told) Apply(_ context.Context, r *networkv1.ApplyRequest) (map[string]error, error) {
	p.ids = nil
	for _, s := range r.GetServices() {
		p.ids = append(p.ids, s.GetId())
	}
	return map[string]error{"net": fmt.Errorf("%d services", len(p.ids))}, nil
}

// TestProcessIsToldInParts tells a process more than fits into one message.
func TestProcessIsToldInParts(t *testing.T) {
	set, want := manyServices()
	config := Config{Dir: t.TempDir()}
	version, err := config.identity()
	ok(t, err)
	plugin := &told{version: version}
	rpc := grpc.NewServer(grpc.MaxRecvMsgSize(largest))
	networkv1.RegisterNetworkServiceServer(rpc, networksdk.NewServer(plugin))
	listener, err := durable.Listen(config.Dir, controlSocket, "unix")
	ok(t, err)
	go func() { _ = rpc.Serve(listener) }()
	t.Cleanup(rpc.Stop)
	c := NewClient(config, func() Model { return Model{Complete: proto.CloneOf(set)} }, zap.NewNop())
	c.partSize = largest / 2
	t.Cleanup(func() { ok(t, c.Close()) })
	failed, err := c.Apply(t.Context(), set, false)
	ok(t, err)
	if !slices.Equal(plugin.ids, want) {
		t.Errorf("the process was told of %d services, want %d", len(plugin.ids), len(want))
	}
	if got := fmt.Sprint(failed["net"]); got != fmt.Sprintf("%d services", len(want)) {
		t.Errorf("the network failed with %q", got)
	}
}

// TestJournalKeepsALargeSetInParts loads a set that exceeds an entry of the journal.
func TestJournalKeepsALargeSetInParts(t *testing.T) {
	set, want := manyServices()
	config := Config{Dir: t.TempDir(), Host: OwnSpace, Namespaces: t.TempDir()}
	s, err := newService(config, zap.NewNop())
	ok(t, err)
	s.partSize = largest / 2
	s.serving = true
	_, err = s.Apply(t.Context(), set)
	ok(t, err)
	s.retire()
	plugin := &told{}
	server := networksdk.NewServer(plugin)
	ok(t, (&journal{path: config.path(journalFile)}).open(func(m proto.Message) error {
		if size := proto.Size(m); size > largest {
			t.Errorf("an entry of the journal has %d bytes", size)
		}
		_, err := server.Apply(t.Context(), m.(*networkv1.ApplyRequest))
		return err
	}))
	if !slices.Equal(plugin.ids, want) {
		t.Errorf("the journal tells of %d services, want %d", len(plugin.ids), len(want))
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
