package dns

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	mdns "github.com/miekg/dns"
)

const (
	// cacheEntries and cacheMessage bound the memory of the cache: a message that is
	// larger, in bytes, is not kept.
	cacheEntries = 4096
	cacheMessage = 4096
	// maxKept is how long a message is kept at most, and maxKeptMissing one that says
	// that there is nothing.
	maxKept        = 5 * time.Minute
	maxKeptMissing = 30 * time.Second
)

// cache keeps what resolvers answered until it expires.
type cache struct {
	mu      sync.Mutex
	entries *simplelru.LRU[question, cached]
}

type cached struct {
	message *mdns.Msg
	stored  time.Time
	expires time.Time
}

func newCache() *cache {
	entries, err := simplelru.NewLRU[question, cached](cacheEntries, nil)
	if err != nil {
		// It fails only for a size below one.
		panic(err)
	}
	return &cache{entries: entries}
}

// put keeps an answer. The message must not be changed afterwards.
func (c *cache) put(key question, m *mdns.Msg) {
	keep := keepTime(m)
	if keep <= 0 || m.Len() > cacheMessage {
		return
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries.Add(key, cached{m, now, now.Add(keep)})
}

// get returns a copy of an answer with the times to live that remain, or nil.
func (c *cache) get(key question) *mdns.Msg {
	now := time.Now()
	c.mu.Lock()
	entry, ok := c.entries.Get(key)
	if ok && !now.Before(entry.expires) {
		c.entries.Remove(key)
		ok = false
	}
	c.mu.Unlock()
	if !ok {
		return nil
	}
	m := entry.message.Copy()
	age := uint32(now.Sub(entry.stored) / time.Second)
	for _, section := range [][]mdns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != mdns.TypeOPT {
				h.Ttl -= min(age, h.Ttl)
			}
		}
	}
	return m
}

// keepTime returns how long an answer can be kept. Negative answers follow RFC 2308: the
// SOA record says.
func keepTime(m *mdns.Msg) time.Duration {
	if m.Truncated || (m.Rcode != mdns.RcodeSuccess && m.Rcode != mdns.RcodeNameError) {
		return 0
	}
	if m.Rcode == mdns.RcodeNameError || len(m.Answer) == 0 {
		for _, rr := range m.Ns {
			if soa, ok := rr.(*mdns.SOA); ok {
				return min(time.Duration(min(soa.Minttl, soa.Hdr.Ttl))*time.Second, maxKeptMissing)
			}
		}
		return 0
	}
	least := maxKept
	for _, section := range [][]mdns.RR{m.Answer, m.Ns} {
		for _, rr := range section {
			least = min(least, time.Duration(rr.Header().Ttl)*time.Second)
		}
	}
	return least
}
