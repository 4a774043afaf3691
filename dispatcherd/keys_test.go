package dispatcherd

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// TestNodeIsRefusedAnothersKey lets a node claim the public key of another one, which keeps it
// when both workers connect again.
func TestNodeIsRefusedAnothersKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		synctest.Wait()
		key := func(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }
		hello := func(node, address string, key []byte) *worker {
			w := c.newWorker(node, c.dial(address))
			w.hello(&dispatcherv1.Hello{NodeId: node, InstanceId: "1", Description: &musterv1.NodeDescription{
				DataPath:       &musterv1.DataPath{Address: "192.0.2.1", Port: 4789, PublicKey: key, EncryptedPort: 4850},
				NetworkDrivers: []*musterv1.NetworkDriverDescription{{Name: "overlay", Capabilities: []string{"ingress", "encrypted"}}},
			}})
			c.wantNode(node, ready)
			return w
		}
		check := func(when, node string, want []byte) {
			t.Helper()
			got := c.nodeState(node)
			can := slices.Contains(got.Description.NetworkDrivers[0].Capabilities, "encrypted")
			if path := got.Description.DataPath; !bytes.Equal(path.PublicKey, want) || (path.EncryptedPort != 0) != (want != nil) || can != (want != nil) {
				t.Errorf("%s: node %s has the key %x at port %d, and can encrypt: %t; want %x", when, node, path.PublicKey, path.EncryptedPort, can, want)
			}
			if refused := strings.Contains(got.Message, "has its public key for encrypted networks already"); refused != (want == nil) {
				t.Errorf("%s: node %s says %q", when, node, got.Message)
			}
		}
		owner, claimant := hello("n2", d.address, key(2)), hello("n1", d.address, key(2))
		check("first", "n2", key(2))
		check("first", "n1", nil)
		owner.hangUp()
		claimant.hangUp()
		time.Sleep(time.Second)
		claimant = hello("n1", d.address, key(2))
		hello("n2", d.address, key(2))
		check("again", "n2", key(2))
		check("again", "n1", nil)
		claimant.hangUp()
		time.Sleep(time.Second)
		hello("n1", d.address, key(1))
		check("with a key of its own", "n1", key(1))
	})
}
