package cli_test

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/internal/daemon"
)

// tested is a cluster in which one task is not reached from node two.
type tested struct {
	musterv1.UnimplementedControlServiceServer
}

func (tested) TestNetwork(_ context.Context, req *musterv1.TestNetworkRequest) (*musterv1.TestNetworkResponse, error) {
	resp := &musterv1.TestNetworkResponse{NetworkName: "back" + req.Network, NodeName: "one", Source: "10.64.4.1", Ok: true}
	check := &musterv1.NetworkCheck{
		Kind: musterv1.NetworkCheck_TASK, Result: musterv1.NetworkCheck_OK, Target: "10.64.9.1:80", TaskId: "t1", NodeId: "n3",
		Took: durationpb.New(1234 * time.Microsecond),
	}
	if req.Node == "two" {
		resp.NodeName, resp.Ok, resp.Problems = "two", false, []string{"node three does not answer"}
		check.Result, check.Message = musterv1.NetworkCheck_NO_ANSWER, "no answer within 3s"
	}
	resp.Checks = []*musterv1.TestedConnection{{Check: check, TaskName: req.Service + ".1", NodeName: "three"}}
	return resp, nil
}

func TestNetworkTestShowsWhatIsBroken(t *testing.T) {
	t.Parallel()
	server, _ := daemon.NewServer(insecure.NewCredentials())
	musterv1.RegisterControlServiceServer(server, tested{})
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
	s.contains(s.must("network", "test", "db"), "back", "one (10.64.4.1)", "TRIED", "db.1", "three", "10.64.9.1:80", "ok", "1.2ms")
	s.contains(s.must("network", "test", "--format", "json", "--network", "2", "db"), `"networkName": "back2"`, `"ok": true`, `"result": "OK"`)
	s.contains(s.fails(cli.ExitUnhealthy, "", "network", "test", "--from", "two", "db"), "node three does not answer")
}
