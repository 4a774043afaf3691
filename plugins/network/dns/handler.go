package dns

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/zap"
)

// shutdownTime bounds how long queries that are being answered keep a server.
const shutdownTime = time.Second

// handler answers queries that arrive on one network.
type handler struct {
	server  *Server
	network string
}

func (h *handler) udpServer(conn *net.UDPConn) *mdns.Server {
	return &mdns.Server{
		PacketConn: conn, Handler: h, UDPSize: maxUDP,
		DecorateReader: func(r mdns.Reader) mdns.Reader { return &limitedReader{r, h} },
	}
}

func (h *handler) tcpServer(listener net.Listener) *mdns.Server {
	return &mdns.Server{Listener: &limitedListener{listener, h}, Handler: h}
}

// serve runs a server until the context ends, and closes its socket.
func serve(ctx context.Context, s *mdns.Server, socket io.Closer) error {
	defer func() { _ = socket.Close() }()
	started, done := make(chan struct{}), make(chan error, 1)
	s.NotifyStartedFunc = func() { close(started) }
	go func() { done <- s.ActivateAndServe() }()
	select {
	case err := <-done:
		return err
	case <-started:
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	if s.Listener != nil {
		// Shutdown would drop connections whose query has not been read yet.
		_ = s.Listener.Close()
		select {
		case err := <-done:
			if errors.Is(err, net.ErrClosed) {
				err = nil
			}
			return err
		case <-limited.Done():
		}
	}
	// Queries that are still being answered then are lost.
	_ = s.ShutdownContext(limited)
	// Both sides close the socket. Until the server has returned, the address may still be
	// in use.
	select {
	case err := <-done:
		return err
	case <-limited.Done():
	}
	return nil
}

// limitedReader drops queries beyond a task's rate before they cost more.
type limitedReader struct {
	mdns.Reader
	handler *handler
}

func (r *limitedReader) ReadUDP(conn *net.UDPConn, timeout time.Duration) ([]byte, *mdns.SessionUDP, error) {
	for {
		message, session, err := r.Reader.ReadUDP(conn, timeout)
		if err != nil || r.handler.allow(session.RemoteAddr()) {
			return message, session, err
		}
	}
}

// limitedListener closes connections of a task that has too many, and of strangers.
type limitedListener struct {
	net.Listener
	handler *handler
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.handler.client(conn.RemoteAddr()); c != nil {
			select {
			case c.connections <- struct{}{}:
				return &limitedConn{Conn: conn, slots: c.connections}, nil
			default:
			}
		}
		l.handler.server.counts.dropped.Add(1)
		_ = conn.Close()
	}
}

// limitedConn gives its slot back when it is closed.
type limitedConn struct {
	net.Conn
	slots chan struct{}
	once  sync.Once
}

func (c *limitedConn) Close() error {
	c.once.Do(func() { <-c.slots })
	return c.Conn.Close()
}

// client returns who asks from an address, or nil.
func (h *handler) client(from net.Addr) *client {
	var address netip.AddrPort
	switch a := from.(type) {
	case *net.UDPAddr:
		address = a.AddrPort()
	case *net.TCPAddr:
		address = a.AddrPort()
	}
	return h.server.zone.client(h.network, address.Addr())
}

// allow takes one query from a client's rate. Strangers are answered, and refused there.
func (h *handler) allow(from net.Addr) bool {
	c := h.client(from)
	if c == nil || c.rate.Allow() {
		return true
	}
	h.server.counts.dropped.Add(1)
	return false
}

// ServeDNS answers one query.
func (h *handler) ServeDNS(w mdns.ResponseWriter, query *mdns.Msg) {
	_, tcp := w.RemoteAddr().(*net.TCPAddr)
	if tcp && !h.allow(w.RemoteAddr()) {
		_ = w.Close()
		return
	}
	response := h.server.respond(h.client(w.RemoteAddr()), query, sizeLimit(query, tcp))
	if err := w.WriteMsg(response); err != nil {
		h.server.log.Debug("failed to send dns response", zap.String("network", h.network), zap.Error(err))
	}
}

// sizeLimit returns the size of the largest response to a query.
func sizeLimit(query *mdns.Msg, tcp bool) int {
	if tcp {
		return mdns.MaxMsgSize
	}
	if opt := query.IsEdns0(); opt != nil {
		return min(max(int(opt.UDPSize()), mdns.MinMsgSize), maxUDP)
	}
	return mdns.MinMsgSize
}

// smallestRecord is the size of an A record whose name is compressed.
const smallestRecord = 16

// respond returns the response to a query, of at most size bytes.
func (s *Server) respond(c *client, query *mdns.Msg, size int) *mdns.Msg {
	response := new(mdns.Msg).SetReply(query)
	response.RecursionAvailable = true
	response.Compress = true
	refuse := func(rcode int) *mdns.Msg {
		s.counts.refused.Add(1)
		response.Rcode = rcode
		return response
	}
	opt := query.IsEdns0()
	if opt != nil {
		// The response needs one of its own.
		response.SetEdns0(maxUDP, opt.Do())
	}
	switch {
	case c == nil:
		return refuse(mdns.RcodeRefused)
	case query.Opcode != mdns.OpcodeQuery:
		return refuse(mdns.RcodeNotImplemented)
	case len(query.Question) != 1:
		return refuse(mdns.RcodeFormatError)
	case opt != nil && opt.Version() != 0:
		return refuse(mdns.RcodeBadVers)
	}
	q := query.Question[0]
	if q.Qclass != mdns.ClassINET || q.Qtype == mdns.TypeAXFR || q.Qtype == mdns.TypeIXFR {
		return refuse(mdns.RcodeRefused)
	}
	// One more than fits makes the response say that it is truncated.
	found := s.zone.lookup(c, q, min(MaxAddresses, size/smallestRecord+1))
	if !found.known {
		return s.respondForwarded(c, query, response, size)
	}
	s.counts.answers.Add(1)
	response.Authoritative = true
	if !found.exists {
		response.Rcode = mdns.RcodeNameError
	}
	response.Answer = found.answer
	response.Extra = append(found.extra, response.Extra...)
	response.Truncate(size)
	return response
}

// respondForwarded completes a response with what the host's resolvers say.
func (s *Server) respondForwarded(c *client, query, response *mdns.Msg, size int) *mdns.Msg {
	if !s.zone.reachesOutside(c) {
		s.counts.answers.Add(1)
		response.Rcode = mdns.RcodeNameError
		return response
	}
	fail := func(reason string, err error) *mdns.Msg {
		s.counts.failures.Add(1)
		response.Rcode = mdns.RcodeServerFailure
		s.log.Debug("failed to forward dns query", zap.String("task", c.task), zap.String("reason", reason), zap.Error(err))
		return response
	}
	key := keyOf(query)
	if got := s.forward.cache.get(key); got != nil {
		s.counts.cached.Add(1)
		s.counts.answers.Add(1)
		return adopt(response, got, size)
	}
	release, err := s.forward.reserve(c)
	if err != nil {
		return fail("task has too many open queries", err)
	}
	defer release()
	s.counts.forwarded.Add(1)
	got, err := s.forward.ask(key)
	if err != nil {
		return fail("no resolver answers", err)
	}
	s.counts.answers.Add(1)
	return adopt(response, got, size)
}

// adopt puts what a resolver said into a response. It does not change what was said.
func adopt(response, said *mdns.Msg, size int) *mdns.Msg {
	own := response.Extra
	response.Rcode, response.AuthenticatedData = said.Rcode, said.AuthenticatedData
	response.Answer, response.Ns = said.Answer, said.Ns
	response.Extra = nil
	for _, rr := range said.Extra {
		if rr.Header().Rrtype != mdns.TypeOPT {
			response.Extra = append(response.Extra, rr)
		}
	}
	response.Extra = append(response.Extra, own...)
	// Truncate shortens the lists, which are the cache's too.
	response.Truncate(size)
	return response
}
