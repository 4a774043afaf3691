package networks_test

import (
	"path/filepath"
	"testing"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/internal/networks"
	"github.com/musterhq/muster/workerd/network"
)

// TestKeyIsReportedWhilePluginsStart: other nodes keep their connections on encrypted
// networks while a plugin, or the worker, starts again.
func TestKeyIsReportedWhilePluginsStart(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "key")
	start := func() *networks.Networks {
		nets := networks.New(networks.Config{NodeID: "node1", DataPathAddress: "192.0.2.1", DataPathPort: 4789, KeyFile: file, Logger: zap.NewNop()})
		nets.Put(net("10.64.4.0/26"))
		nets.Restored()
		return nets
	}
	reports := func(nets *networks.Networks, when, want string, port uint32) {
		t.Helper()
		node := &musterv1.NodeDescription{}
		nets.Describe(node)
		if path := node.DataPath; string(path.GetPublicKey()) != want || path.GetEncryptedPort() != port {
			t.Errorf("%s, the data path is %v, want key %q and port %d", when, path, want, port)
		}
	}
	running := &struct{ network.Plugin }{}
	plugin := func(p network.Plugin, key string, port uint32) []*network.Described {
		return []*network.Described{network.NewDescribed(p, &network.About{Name: "null", Healthy: p != nil, Drivers: []string{"overlay"}, PublicKey: []byte(key), EncryptedPort: port})}
	}
	nets := start()
	reports(nets, "before a plugin has told a key", "", 0)
	nets.SetPlugins(plugin(running, "first", 4790))
	reports(nets, "with a plugin", "first", 4790)
	nets.SetPlugins(plugin(nil, "", 0))
	reports(nets, "while the plugin starts again", "first", 4790)
	nets = start()
	reports(nets, "after a restart of the worker", "first", 4790)
	nets.SetPlugins(plugin(nil, "", 0))
	reports(nets, "while the plugin of the next worker starts", "first", 4790)
	nets.SetPlugins(plugin(running, "second", 4791))
	reports(nets, "with another key", "second", 4791)
	nets.SetPlugins(plugin(running, "", 0))
	reports(nets, "with a plugin that cannot encrypt", "", 0)
	reports(start(), "after another restart", "", 0)
}
