package control_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/probes"
	"github.com/musterhq/muster/internal/store"
)

// volumeDispatcher is a dispatcher whose one node has some volumes.
type volumeDispatcher struct {
	dispatcherv1.UnimplementedProbeServiceServer
	removed []string
}

func (d *volumeDispatcher) Probe(_ context.Context, req *dispatcherv1.ProbeRequest) (*dispatcherv1.ProbeResponse, error) {
	result := &dispatcherv1.VolumeResult{}
	switch name := req.Volumes.GetRemove(); name {
	case "":
		result.Volumes = []*musterv1.NodeVolume{{Name: "data"}, {Name: "data-7"}, {Name: "free"}}
	case "used":
		result.Code, result.Error = uint32(codes.FailedPrecondition), "task t1 has it"
	case "odd":
		result.Code, result.Error = uint32(codes.PermissionDenied), "odd"
	default:
		d.removed = append(d.removed, req.NodeId+"/"+name)
	}
	return &dispatcherv1.ProbeResponse{Volumes: result}, nil
}

func TestVolumesThatServicesNameAreRemovedByForceOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, testVolumesThatServicesName)
}

func testVolumesThatServicesName(t *testing.T) {
	dispatcher, listener, server := &volumeDispatcher{}, bufconn.Listen(1<<16), grpc.NewServer()
	dispatcherv1.RegisterProbeServiceServer(server, dispatcher)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	prober := probes.NewProber(func(string) (string, bool) { return "d", true }, func(string) (*grpc.ClientConn, error) {
		return grpc.NewClient("passthrough:///d", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	})
	f := startProbed(t, prober)
	f.update(func(tx *store.Tx) {
		f.Tables.Nodes.Put(tx, "n1", &recordv1.Node{Spec: &musterv1.NodeSpec{}})
		f.Tables.NodeStates.Put(tx, "n1", &recordv1.NodeState{Description: &musterv1.NodeDescription{Hostname: "one"}})
	})
	for name, source := range map[string]string{"db": "data", "shards": "data-{{.Task.Slot}}"} {
		spec := webSpec(name)
		spec.Task.GetContainer().Mounts = []*musterv1.Mount{{Type: musterv1.Mount_VOLUME, Source: source, Target: "/data"}}
		f.create(spec)
	}
	listed, err := f.ListNodeVolumes(t.Context(), &musterv1.ListNodeVolumesRequest{Node: "one"})
	var got []string
	for _, v := range listed.GetVolumes() {
		got = append(got, v.NodeName+"/"+v.Name+":"+strings.Join(v.Services, ","))
	}
	if want := []string{"one/data:db", "one/data-7:shards", "one/free:"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("ListNodeVolumes = %q, %v, want %q", got, err, want)
	}
	for _, tt := range []struct {
		volume, says string
		force        bool
		want         codes.Code
	}{
		{"data", "db", false, codes.FailedPrecondition}, {"data-7", "shards", false, codes.FailedPrecondition}, {"free", "", false, codes.OK},
		{"data", "", true, codes.OK}, {"used", "task t1 has it", true, codes.FailedPrecondition}, {"odd", "odd", true, codes.Unavailable},
		{"", "volume", true, codes.InvalidArgument},
	} {
		_, err := f.RemoveNodeVolume(t.Context(), &musterv1.RemoveNodeVolumeRequest{Node: "n1", Volume: tt.volume, Force: tt.force})
		if status.Code(err) != tt.want || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("RemoveNodeVolume of %q, force %t = %v, want %s with %q", tt.volume, tt.force, err, tt.want, tt.says)
		}
	}
	if want := []string{"n1/free", "n1/data"}; !slices.Equal(dispatcher.removed, want) {
		t.Errorf("the node removed %q, want %q", dispatcher.removed, want)
	}
}
