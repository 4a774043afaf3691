//go:build linux

package overlay_test

import (
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNodeDoesNotGetTrafficOfAnotherByItsID: hardware addresses are made of ids, which nodes
// choose, and these two ids make the same one.
func TestNodeDoesNotGetTrafficOfAnotherByItsID(t *testing.T) {
	_, machines := newMachines(t, 4)
	machines[1].node.Id, machines[2].node.Id = "node-23922", "node-318872"
	join(machines, "net", 4098, nil, nil)
	client := machines[0].attach("client", "net="+at(1, 2))
	victim := machines[1].attach("victim", "net="+at(2, 2))
	other := machines[3].attach("other", "net="+at(4, 2))
	victim.serve(80)
	other.serve(80)
	thief := sniff(t, machines[2].space)
	send := func(to, text string) {
		must(t, client.space.Do(func() error {
			conn, err := net.Dial("udp", first(to)+":9")
			if err != nil {
				return err
			}
			_, err = conn.Write([]byte(text))
			if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
				err = nil
			}
			return errors.Join(err, conn.Close())
		}))
	}
	for range 10 {
		send(at(2, 2), "for the victim")
	}
	// Other nodes are reached, which takes longer than the packets above.
	mustGet(t, client.space, first(at(4, 2))+":80")
	if thief.saw("for the victim") == nil {
		t.Error("a node gets the packets for another one")
	}
}
