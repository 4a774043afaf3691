package cli_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/internal/daemon"
)

// withVolumes is a cluster of two nodes with volumes, one that does not answer, and one
// that is down.
type withVolumes struct {
	musterv1.UnimplementedControlServiceServer

	mu      sync.Mutex
	removed []string
}

func (*withVolumes) ListNodes(context.Context, *musterv1.ListNodesRequest) (*musterv1.ListNodesResponse, error) {
	resp := &musterv1.ListNodesResponse{}
	for id, state := range map[string]musterv1.NodeStatus_State{
		"n1": musterv1.NodeStatus_READY, "n2": musterv1.NodeStatus_READY, "away": musterv1.NodeStatus_READY, "down": musterv1.NodeStatus_DOWN,
	} {
		resp.Nodes = append(resp.Nodes, &musterv1.Node{Id: id, Status: &musterv1.NodeStatus{State: state}})
	}
	return resp, nil
}

func (*withVolumes) ListNodeVolumes(_ context.Context, req *musterv1.ListNodeVolumesRequest) (*musterv1.ListNodeVolumesResponse, error) {
	if req.Node != "n1" && req.Node != "n2" {
		return nil, status.Errorf(codes.Unavailable, "node %s does not answer", req.Node)
	}
	resp := &musterv1.ListNodeVolumesResponse{}
	add := func(v *musterv1.NodeVolume) {
		v.NodeId, v.NodeName, v.Driver = req.Node, "host-"+req.Node, "local"
		resp.Volumes = append(resp.Volumes, v)
	}
	add(&musterv1.NodeVolume{Name: "data", InUse: true, MadeByTask: true, Services: []string{"db"}})
	if req.Node == "n1" {
		add(&musterv1.NodeVolume{Name: "idle", MadeByTask: true, Services: []string{"db"}})
		add(&musterv1.NodeVolume{Name: "old", MadeByTask: true, Labels: map[string]string{"stage": "test"}})
		add(&musterv1.NodeVolume{Name: "foreign"})
	}
	return resp, nil
}

func (w *withVolumes) RemoveNodeVolume(_ context.Context, req *musterv1.RemoveNodeVolumeRequest) (*musterv1.RemoveNodeVolumeResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := req.Node + "/" + req.Volume
	if req.Force {
		text += " by force"
	}
	w.removed = append(w.removed, text)
	return &musterv1.RemoveNodeVolumeResponse{}, nil
}

// wantRemoved compares what was removed since the last call.
func (w *withVolumes) wantRemoved(t *testing.T, want ...string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.removed) != len(want) {
		t.Errorf("removed %q, want %q", w.removed, want)
	} else {
		for i := range want {
			if w.removed[i] != want[i] {
				t.Errorf("removed %q, want %q", w.removed, want)
			}
		}
	}
	w.removed = nil
}

func TestVolumeCommands(t *testing.T) {
	t.Parallel()
	cluster := &withVolumes{}
	server, _ := daemon.NewServer(insecure.NewCredentials())
	musterv1.RegisterControlServiceServer(server, cluster)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- daemon.ServeGRPC(ctx, server, l, time.Second) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	s := &shell{t: t, address: l.Addr().String()}
	both := []string{"--node", "n1", "--node", "n2"}
	with := func(args ...string) []string { return append(append([]string{"volume"}, args...), both...) }

	s.contains(s.must(with("ls")...), "VOLUME", "data", "host-n1", "host-n2", "local", "yes", "db", "old")
	s.contains(s.fails(cli.ExitUnavailable, "", "volume", "ls"), "node away does not answer")
	if got, want := s.must(with("ls", "-q", "--filter", "label=stage=test")...), "old\n"; got != want {
		t.Errorf("filtered by label: %q, want %q", got, want)
	}
	if got, want := s.must(with("ls", "-q", "--filter", "in-use=true", "--filter", "name=at")...), "data\ndata\n"; got != want {
		t.Errorf("filtered by use: %q, want %q", got, want)
	}
	s.contains(s.fails(cli.ExitUsage, "", with("ls", "--filter", "size=1")...), "size")
	s.contains(s.must(with("inspect", "old")...), `"stage": "test"`, `"madeByTask": true`)
	s.contains(s.fails(cli.ExitNotFound, "", with("inspect", "none")...), "none")

	s.contains(s.fails(cli.ExitNotFound, "", with("rm", "none")...), "none")
	cluster.wantRemoved(t)
	s.must(with("rm", "--force", "data", "old")...)
	cluster.wantRemoved(t, "n1/data by force", "n2/data by force", "n1/old by force")

	s.fails(cli.ExitFailure, "n\n", with("prune")...)
	cluster.wantRemoved(t)
	if got, want := s.must(with("prune", "--force")...), "old on host-n1\n"; got != want {
		t.Errorf("prune prints %q, want %q", got, want)
	}
	cluster.wantRemoved(t, "n1/old")
}
