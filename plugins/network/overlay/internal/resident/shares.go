//go:build linux

package resident

import (
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// maxRelayed is how many connections are relayed at once. Each takes two files.
	maxRelayed = 10_000
	// otherFiles are those that the process may need for names, and for connections that
	// it refuses.
	otherFiles = 2048
	minRelayed = 16
	// clientBits is the prefix of an IPv6 address that one client usually has for itself.
	clientBits = 64
)

// shares bounds the connections that are relayed at once. A port gets another one while it
// has fewer than are free, and a client of a port while it has fewer than half of that. So
// neither can take what all others need: one port gets at most a half of all, one client a
// third.
type shares struct {
	mu   sync.Mutex
	free int
}

// share is what one port has.
type share struct {
	taken   int
	clients map[netip.Addr]int
}

// newShares returns the shares of a process that may open so many files.
func newShares(files uint64) *shares {
	return &shares{free: max(minRelayed, int(min(maxRelayed, (max(files, otherFiles)-otherFiles)/2)))}
}

// openFiles returns how many files the process may open.
func openFiles() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return limit.Cur
}

// take takes a connection of a client for a port, if there is one left for them.
func (s *shares) take(port *share, client netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if port.taken >= s.free || port.clients[client] >= s.free/2 {
		return false
	}
	if port.clients == nil {
		port.clients = make(map[netip.Addr]int)
	}
	s.free--
	port.taken++
	port.clients[client]++
	return true
}

// release gives a connection back.
func (s *shares) release(port *share, client netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free++
	port.taken--
	if port.clients[client]--; port.clients[client] == 0 {
		delete(port.clients, client)
	}
}

// clientOf returns whose connections count together with those of an address.
func clientOf(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	client := tcp.AddrPort().Addr().Unmap().WithZone("")
	if client.Is6() {
		return netip.PrefixFrom(client, clientBits).Masked().Addr()
	}
	return client
}
