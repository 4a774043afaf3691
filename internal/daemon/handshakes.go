package daemon

import "container/list"

// handshakes queues the connections of a port whose TLS handshake has not finished, the
// oldest first. Anyone can open a connection; it must not keep out one that finishes its
// handshake. So a full queue closes its oldest connection, as a queue of half-open TCP
// connections does, instead of refusing the newest.
type handshakes struct {
	// most bounds the queue, and is reserved for it. perHost bounds the connections of
	// one host in it, so that one host closes its own connections and not those of
	// others. 0: no bound.
	most, perHost int

	all    *list.List
	byHost map[string]*list.List
}

// place is a connection's place in the queues.
type place struct{ all, host *list.Element }

// newHandshakes returns a queue for a port. Without TLS it stays empty.
func newHandshakes(s ConnectionSettings, secure bool) *handshakes {
	h := &handshakes{perHost: s.PerHost, all: list.New(), byHost: map[string]*list.List{}}
	if secure {
		h.most = s.Most / unauthenticatedShare
	}
	return h
}

// evict returns the connection that must be closed so that another one of a host can be
// queued, and the setting that bounds it. It returns nil if none must be closed.
func (h *handshakes) evict(host string) (*boundedConn, string) {
	own := h.byHost[host]
	switch {
	case own != nil && h.perHost > 0 && own.Len() >= h.perHost:
		return oldest(own), settingPerHost
	case h.most > 0 && h.all.Len() >= h.most:
		return oldest(h.all), settingMost
	}
	return nil, ""
}

func oldest(queue *list.List) *boundedConn {
	if queue.Front() == nil {
		return nil
	}
	c, _ := queue.Front().Value.(*boundedConn)
	return c
}

func (h *handshakes) add(c *boundedConn) {
	own := h.byHost[c.host]
	if own == nil {
		own = list.New()
		h.byHost[c.host] = own
	}
	c.place = &place{all: h.all.PushBack(c), host: own.PushBack(c)}
}

// remove takes a connection out of the queues, if it is there.
func (h *handshakes) remove(c *boundedConn) {
	if c.place == nil {
		return
	}
	h.all.Remove(c.place.all)
	own := h.byHost[c.host]
	if own.Remove(c.place.host); own.Len() == 0 {
		delete(h.byHost, c.host)
	}
	c.place = nil
}
