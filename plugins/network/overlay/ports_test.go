//go:build linux

package overlay_test

import (
	"crypto/rand"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"testing"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
	"github.com/musterhq/muster/plugins/network/overlay/internal/tunnel"
)

// occupy takes a UDP port of a machine from all others until the test ends.
func occupy(t *testing.T, space *netns.Namespace, port int) {
	t.Helper()
	must(t, space.Do(func() error {
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return err
	}))
}

func TestNodesOfOneMachineTakeDifferentEncryptedPorts(t *testing.T) {
	_, machines := newMachines(t, 1)
	machines = append(machines, machines[0].beside("node-2-"+rand.Text(), 5789))
	// Both choose before one of them has a device.
	ports := make(map[uint32]bool)
	for _, m := range machines {
		ports[m.describe(t).GetEncryptedPort()] = true
	}
	if len(ports) != len(machines) {
		t.Errorf("the nodes have chosen %v", ports)
	}
	sendEncrypted(t, machines)
}

// sendEncrypted lets tasks of two nodes speak on an encrypted network.
func sendEncrypted(t *testing.T, machines []*machine) {
	t.Helper()
	// The first round makes devices, and the second one knows their ports.
	for range 2 {
		join(machines, "net", 4098, encrypted, introduce(t, machines))
	}
	client, server := machines[0].attach("client", "net="+at(1, 2)), machines[1].attach("server", "net="+at(2, 2))
	server.serve(80)
	if name, _ := mustGet(t, client.space, first(at(2, 2))+":80"); name != "server" {
		t.Errorf("%s answered", name)
	}
}

// movePort has a node's record say another port while its plugin does not run.
func (m *machine) movePort(port int) {
	m.t.Helper()
	must(m.t, m.plugin.Close())
	path := filepath.Join(m.dir, "state", "encryption.json")
	text, err := os.ReadFile(path)
	must(m.t, err)
	var record map[string]any
	must(m.t, json.Unmarshal(text, &record))
	record["port"] = port
	text, err = json.Marshal(record)
	must(m.t, err)
	must(m.t, os.WriteFile(path, text, 0o600))
	m.start()
}

func TestNodeWhoseEncryptedPortIsTakenChoosesAnother(t *testing.T) {
	_, machines := newMachines(t, 2)
	m := machines[0]
	join(machines, "net", 4098, encrypted, introduce(t, machines))
	occupy(t, m.space, 6000)
	m.movePort(6000)
	sendEncrypted(t, machines)
	if port := m.describe(t).GetEncryptedPort(); port == 6000 {
		t.Error("the node has kept a port that another program uses")
	}
}

func TestPlainNetworksWorkWhileEncryptionFails(t *testing.T) {
	_, machines := newMachines(t, 1)
	m := machines[0]
	must(t, m.plugin.Close())
	m.encryption.Port = 6000
	m.start()
	occupy(t, m.space, 6000)
	r := &networkv1.ApplyRequest{Complete: true, Node: m.node, Networks: []*networkv1.Network{
		net10("closed", 4097, 1, encrypted), net10("open", 4098, 2, nil),
	}}
	failed, err := m.plugin.Apply(t.Context(), r)
	if err != nil || failed["closed"] == nil || failed["open"] != nil {
		t.Errorf("failed networks: %v, %v", failed, err)
	}
	a, b := m.attach("a", "open="+at(2, 2)), m.attach("b", "open="+at(2, 3))
	b.serve(80)
	mustGet(t, a.space, first(at(2, 3))+":80")
}

// TestDefaultPortIsNoDataPathOfAnotherWorker: the workers of one machine have the ports from
// 4789 on, one each, for networks that are not encrypted.
func TestDefaultPortIsNoDataPathOfAnotherWorker(t *testing.T) {
	t.Parallel()
	const vxlan, workers = 4789, 50
	if p := tunnel.DefaultPort; p >= vxlan && p < vxlan+workers {
		t.Errorf("encrypted networks begin at port %d, which worker %d of a machine has for its data path", p, p-vxlan+1)
	}
}
