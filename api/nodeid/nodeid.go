// Package nodeid says what the ids of nodes are: what they consist of, and the hardware
// address that a node has for it on networks.
package nodeid

import (
	"crypto/sha256"
	"fmt"
	"net"
	"regexp"
)

// valid matches what fits into names of files, certificates and records.
var valid = regexp.MustCompile(`^[0-9A-Za-z_-][0-9A-Za-z._-]{0,63}$`)

// Check returns an error if an id cannot be that of a node.
func Check(id string) error {
	if !valid.MatchString(id) {
		return fmt.Errorf(`node id %.140q: want 1 to 64 letters, digits, ".", "_" and "-", not beginning with "."`, id)
	}
	return nil
}

// HardwareAddress returns the hardware address of a node on overlay networks. It is made
// of the id alone, so that every node knows it of every other. Two nodes with the same
// one cannot be told apart there.
func HardwareAddress(id string) net.HardwareAddr {
	sum := sha256.Sum256([]byte("node\x00" + id))
	return append(net.HardwareAddr{0x02}, sum[:5]...)
}
