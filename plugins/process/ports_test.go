//go:build linux

package process_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/process"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

func openPort(target uint32, protocol musterv1.PortConfig_Protocol) *sdk.Port {
	return &sdk.Port{TargetPort: target, Protocol: protocol, PublishMode: musterv1.PortConfig_HOST}
}

func TestChosenPortIsReportedAndToldToTheProcess(t *testing.T) {
	t.Parallel()
	b := newBench(t, spec(t, map[string]any{"shell": "env; exec sleep 100000"}))
	b.task.Ports = []*sdk.Port{
		openPort(53, musterv1.PortConfig_TCP), openPort(53, musterv1.PortConfig_UDP), openPort(80, musterv1.PortConfig_PROTOCOL_UNSPECIFIED),
	}
	first := b.run().Ports
	if len(first) != 3 {
		t.Fatalf("ports = %v, want 3", first)
	}
	dns, web := first[0].GetPublishedPort(), first[2].GetPublishedPort()
	if dns < 1024 || web < 1024 || dns == web {
		t.Errorf("ports = %v, want two free ones", first)
	}
	if first[1].GetPublishedPort() != dns || first[1].GetProtocol() != musterv1.PortConfig_UDP {
		t.Errorf("ports = %v, want one number for both protocols of port 53", first)
	}
	b.line(fmt.Sprintf("MUSTER_PORT_53=%d", dns))
	b.line(fmt.Sprintf("MUSTER_PORT_80=%d", web))
	// A new process of the executor still knows the ports.
	again, err := process.New(process.Config{StateDir: b.dir})
	if err != nil {
		t.Fatal(err)
	}
	started, err := again.Start(t.Context(), b.task, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.EqualFunc(first, started.Ports, func(x, y *sdk.Port) bool {
		return x.GetPublishedPort() == y.GetPublishedPort() && x.GetTargetPort() == y.GetTargetPort()
	}) {
		t.Errorf("ports of a new process = %v, want %v", started.Ports, first)
	}
}

func TestTasksGetDifferentPorts(t *testing.T) {
	t.Parallel()
	b := newBench(t, spec(t, map[string]any{"command": []any{"sleep", "100000"}}))
	const tasks = 40
	var wg sync.WaitGroup
	ports := make([]uint32, tasks)
	for i := range tasks {
		task := &sdk.Task{
			Id: fmt.Sprintf("%sx%d", b.ref.TaskID, i), NodeId: "n1", Spec: b.task.Spec, Ports: []*sdk.Port{openPort(80, musterv1.PortConfig_TCP)},
		}
		t.Cleanup(func() {
			if err := b.Remove(context.Background(), sdk.Ref{TaskID: task.Id}); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := b.Prepare(t.Context(), task, nil); err != nil {
				t.Error(err)
				return
			}
			started, err := b.Start(t.Context(), task, nil)
			if err != nil {
				t.Error(err)
				return
			}
			ports[i] = started.Ports[0].GetPublishedPort()
		})
	}
	wg.Wait()
	slices.Sort(ports)
	if different := slices.Compact(slices.Clone(ports)); len(different) != tasks {
		t.Errorf("ports = %d: two tasks have the same", ports)
	}
}

func TestNoPortIsChosenForSCTP(t *testing.T) {
	t.Parallel()
	b := newBench(t, spec(t, map[string]any{"command": []any{"true"}}))
	b.task.Ports = []*sdk.Port{openPort(80, musterv1.PortConfig_SCTP)}
	_, err := b.Prepare(t.Context(), b.task, nil)
	var fault *wire.Error
	if !errors.As(err, &fault) || fault.Temporary || fault.Blame != wire.BlameSpec || fault.Field != "ports" {
		t.Errorf("Prepare = %+v, want the spec's fault in its ports", err)
	}
}
