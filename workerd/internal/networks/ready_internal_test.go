package networks

import (
	"testing"

	"go.uber.org/zap"

	"github.com/musterhq/muster/workerd/network"
)

func TestErrorOfANetworkThatIsNotThereMakesNone(t *testing.T) {
	n := New(Config{NodeID: "node1", Logger: zap.NewNop()})
	a := newApplier(n, "null")
	a.ready = struct{ network.Plugin }{}
	n.appliers["null"] = a
	for _, why := range []string{"", "no kernel module"} {
		a.errors["gone"] = why
		if _, err := n.readyNow(&task{plugin: "null", attachments: []network.Attachment{{NetworkID: "gone"}}}); err == nil {
			t.Error("a network that is not there is ready")
		}
	}
	if len(n.networks) > 0 {
		t.Errorf("%d networks, want none", len(n.networks))
	}
}
