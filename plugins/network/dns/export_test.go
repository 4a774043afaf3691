package dns

import (
	"net/netip"

	mdns "github.com/miekg/dns"
)

// Respond answers a query as if it had come from an address on a network.
func (s *Server) Respond(network string, from netip.Addr, query *mdns.Msg, size int) *mdns.Msg {
	return s.respond(s.zone.client(network, from), query, size)
}

// CacheEntries is the number of answers that are kept at most.
const CacheEntries = cacheEntries

// Cached returns the number of answers that are kept.
func (s *Server) Cached() int {
	s.forward.cache.mu.Lock()
	defer s.forward.cache.mu.Unlock()
	return s.forward.cache.entries.Len()
}
