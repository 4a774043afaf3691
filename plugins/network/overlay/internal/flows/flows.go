//go:build linux

// Package flows deletes connections that lead to where nothing answers any longer.
package flows

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"
)

// DeleteUDP deletes the connections of UDP whose destination was replaced and that the
// caller finds stale, in the namespace with the given file descriptor. A client that
// sends on never gives up such a connection by itself. It returns how many there were.
func DeleteUDP(space int, stale func(original netip.AddrPort, backend netip.Addr) bool) (int, error) {
	conn, err := conntrack.Dial(&netlink.Config{NetNS: space})
	if err != nil {
		return 0, fmt.Errorf("open conntrack socket: %w", err)
	}
	defer func() { _ = conn.Close() }()
	all, err := conn.Dump(nil)
	if err != nil {
		return 0, fmt.Errorf("list connections: %w", err)
	}
	deleted := 0
	for _, f := range all {
		original, backend := f.TupleOrig.IP.DestinationAddress, f.TupleReply.IP.SourceAddress
		if f.TupleOrig.Proto.Protocol != unix.IPPROTO_UDP || original == backend || !stale(netip.AddrPortFrom(original, f.TupleOrig.Proto.DestinationPort), backend) {
			continue
		}
		if err := conn.Delete(f); err != nil && !errors.Is(err, unix.ENOENT) {
			return deleted, fmt.Errorf("delete connection: %w", err)
		}
		deleted++
	}
	return deleted, nil
}

// Count returns how many connections the calling thread's namespace has, and how many
// the machine allows.
func Count() (entries, limit uint64) {
	return number("nf_conntrack_count"), number("nf_conntrack_max")
}

func number(name string) uint64 {
	text, err := os.ReadFile("/proc/sys/net/netfilter/" + name)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
