package validate_test

import (
	"slices"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/placement"
)

// TestPortsOfNodesCarryNetworks: a node uses two ports in turn for encrypted networks, and
// names the one of the moment.
func TestPortsOfNodesCarryNetworks(t *testing.T) {
	t.Parallel()
	n := node(ready, musterv1.NodeSpec_ACTIVE)
	n.Description.DataPath = &musterv1.DataPath{Address: "192.0.2.1", Port: 5789, EncryptedPort: 4790}
	c := validate.NewCatalog(slices.Values([]*placement.Node{n}))
	for port, want := range map[uint32]bool{4788: false, 4789: true, 4790: true, 4791: true, 4792: false, 5789: true, 5790: false} {
		if got := c.CarriesNetworks(&musterv1.PortConfig{Protocol: musterv1.PortConfig_UDP, PublishedPort: port}); got != want {
			t.Errorf("UDP port %d carries networks: %t, want %t", port, got, want)
		}
	}
	if c.CarriesNetworks(&musterv1.PortConfig{Protocol: musterv1.PortConfig_TCP, PublishedPort: 4790}) {
		t.Error("TCP port 4790 carries networks")
	}
}
