package simulation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

var (
	errRefused = errors.New("connection refused")
	errReset   = errors.New("connection reset by peer")
	errDead    = errors.New("this host is dead")
)

// window is how many bytes are under way in one direction before a writer waits.
const window = 64 << 10

// network connects hosts in memory. What lies between two hosts can be cut and
// slowed: as with TCP, what was sent then comes later, in order, or never.
type network struct {
	mu        sync.Mutex
	listeners map[string]*listener
	links     map[[2]string]*link
	// latency is how long everything takes.
	latency time.Duration
}

func newNetwork(latency time.Duration) *network {
	return &network{listeners: map[string]*listener{}, links: map[[2]string]*link{}, latency: latency}
}

// link is what lies between two hosts.
type link struct {
	mu    sync.Mutex
	cuts  int
	delay time.Duration
	pipes map[*pipe]struct{}
}

func (n *network) link(a, b string) *link {
	if a > b {
		a, b = b, a
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.links[[2]string{a, b}]
	if l == nil {
		l = &link{pipes: map[*pipe]struct{}{}}
		n.links[[2]string{a, b}] = l
	}
	return l
}

// change changes a link, and has all who wait at it look again.
func (l *link) change(f func()) {
	l.mu.Lock()
	f()
	var pipes []*pipe
	for p := range l.pipes {
		pipes = append(pipes, p)
	}
	l.mu.Unlock()
	for _, p := range pipes {
		p.halves[0].poke()
		p.halves[1].poke()
	}
}

func (l *link) state() (open bool, delay time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cuts == 0, l.delay
}

// cut lets nothing pass between two hosts until mend is called.
func (n *network) cut(a, b string) (mend func()) {
	l := n.link(a, b)
	l.change(func() { l.cuts++ })
	return sync.OnceFunc(func() { l.change(func() { l.cuts-- }) })
}

// slow makes what is sent between two hosts late until mend is called.
func (n *network) slow(a, b string, by time.Duration) (mend func()) {
	l := n.link(a, b)
	l.change(func() { l.delay += by })
	return sync.OnceFunc(func() { l.change(func() { l.delay -= by }) })
}

// reset breaks all connections between two hosts: what is under way is lost.
func (n *network) reset(a, b string) {
	l := n.link(a, b)
	l.mu.Lock()
	var pipes []*pipe
	for p := range l.pipes {
		pipes = append(pipes, p)
	}
	l.mu.Unlock()
	for _, p := range pipes {
		p.breakOff(errReset, errReset)
	}
}

// host is one life of a host: the next one has nothing of its connections.
type host struct {
	net  *network
	name string

	mu       sync.Mutex
	dead     bool
	listener *listener
	pipes    map[*pipe]struct{}
}

// join brings a host into the network.
func (n *network) join(name string) *host {
	return &host{net: n, name: name, pipes: map[*pipe]struct{}{}}
}

// addressOf is where a host listens.
func addressOf(name string) string { return name + ":1" }

// listen makes the host take connections.
func (h *host) listen() net.Listener {
	l := &listener{host: h, incoming: make(chan net.Conn), closed: make(chan struct{})}
	h.mu.Lock()
	h.listener = l
	h.mu.Unlock()
	h.net.mu.Lock()
	h.net.listeners[h.name] = l
	h.net.mu.Unlock()
	return l
}

// die ends a host's life. Its peers are told so, or, if silent, hear nothing of it
// ever again.
func (h *host) die(silent bool) {
	h.mu.Lock()
	h.dead = true
	l := h.listener
	var pipes []*pipe
	for p := range h.pipes {
		pipes = append(pipes, p)
	}
	h.mu.Unlock()
	if l != nil {
		_ = l.Close() // it never fails
	}
	for _, p := range pipes {
		there := errReset
		if open, _ := p.link.state(); silent || !open {
			there = nil
		}
		if p.from == h {
			p.breakOff(errDead, there)
		} else {
			p.breakOff(there, errDead)
		}
	}
}

// enter notes a connection of the host's.
func (h *host) enter(p *pipe) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dead {
		return false
	}
	h.pipes[p] = struct{}{}
	return true
}

func (h *host) leave(p *pipe) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.pipes, p)
}

// dial connects to an address.
func (h *host) dial(ctx context.Context, address string) (net.Conn, error) {
	name, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	link := h.net.link(h.name, name)
	if open, _ := link.state(); !open {
		// No answer comes, not even a refusal.
		<-ctx.Done()
		return nil, fmt.Errorf("dial %s: %w", address, context.Cause(ctx))
	}
	h.net.mu.Lock()
	l := h.net.listeners[name]
	h.net.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("dial %s: %w", address, errRefused)
	}
	p := newPipe(link, h, l.host)
	if !h.enter(p) {
		return nil, fmt.Errorf("dial %s: %w", address, errDead)
	}
	if !l.host.enter(p) {
		h.leave(p)
		return nil, fmt.Errorf("dial %s: %w", address, errRefused)
	}
	link.mu.Lock()
	link.pipes[p] = struct{}{}
	link.mu.Unlock()
	select {
	case l.incoming <- &conn{p: p, in: &p.halves[0], out: &p.halves[1], local: l.host.name, remote: h.name}:
		return &conn{p: p, in: &p.halves[1], out: &p.halves[0], local: h.name, remote: name}, nil
	case <-l.closed:
		p.breakOff(errRefused, errRefused)
		return nil, fmt.Errorf("dial %s: %w", address, errRefused)
	case <-ctx.Done():
		p.breakOff(errRefused, errRefused)
		return nil, fmt.Errorf("dial %s: %w", address, context.Cause(ctx))
	}
}

// listener takes connections.
type listener struct {
	host     *host
	incoming chan net.Conn
	closed   chan struct{}
	once     sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.incoming:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		n := l.host.net
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.listeners[l.host.name] == l {
			delete(n.listeners, l.host.name)
		}
	})
	return nil
}

func (l *listener) Addr() net.Addr { return address(l.host.name) }

// address is a host's.
type address string

func (address) Network() string  { return "memory" }
func (a address) String() string { return addressOf(string(a)) }

// pipe is a connection. The first half leads from who dialled to who listens.
type pipe struct {
	link     *link
	from, to *host
	halves   [2]half
}

func newPipe(l *link, from, to *host) *pipe {
	p := &pipe{link: l, from: from, to: to}
	for i := range p.halves {
		p.halves[i].pipe = p
		p.halves[i].changed = make(chan struct{})
	}
	return p
}

// breakOff ends the pipe for who dialled and for who listens, each with an error;
// nil leaves an end to itself: it hears nothing any more.
func (p *pipe) breakOff(from, to error) {
	p.halves[0].change(func(h *half) { h.lost, h.writeErr, h.readErr = true, first(h.writeErr, from), first(h.readErr, to) })
	p.halves[1].change(func(h *half) { h.lost, h.writeErr, h.readErr = true, first(h.writeErr, to), first(h.readErr, from) })
	if from != nil && to != nil {
		p.forget()
	}
}

func first(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// forget takes the pipe out of all lists.
func (p *pipe) forget() {
	p.from.leave(p)
	p.to.leave(p)
	p.link.mu.Lock()
	defer p.link.mu.Unlock()
	delete(p.link.pipes, p)
}

// half is one direction.
type half struct {
	pipe *pipe

	mu     sync.Mutex
	chunks []chunk
	size   int
	// ended is true when the writer has closed, unread when the reader has; lost, when
	// nothing arrives any more, nor any news of the other end.
	ended, unread, lost bool
	readErr, writeErr   error
	readBy, writeBy     time.Time
	// changed is closed and replaced whenever something of all this changes.
	changed chan struct{}
}

// chunk is what was written at once.
type chunk struct {
	sent time.Time
	data []byte
}

func (h *half) change(f func(*half)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(h)
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *half) poke() { h.change(func(*half) {}) }

// read returns what has arrived.
func (h *half) read(b []byte) (int, error) {
	for {
		open, delay := h.pipe.link.state()
		delay += h.pipe.from.net.latency
		h.mu.Lock()
		var due time.Time
		switch {
		case h.readErr != nil:
			defer h.mu.Unlock()
			return 0, h.readErr
		case !h.readBy.IsZero() && !time.Now().Before(h.readBy):
			defer h.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case h.lost || !open:
		case len(h.chunks) > 0:
			c := &h.chunks[0]
			due = c.sent.Add(delay)
			if due.After(time.Now()) {
				break
			}
			n := copy(b, c.data)
			if c.data = c.data[n:]; len(c.data) == 0 {
				h.chunks = h.chunks[1:]
			}
			h.size -= n
			close(h.changed)
			h.changed = make(chan struct{})
			h.mu.Unlock()
			return n, nil
		case h.ended:
			defer h.mu.Unlock()
			return 0, io.EOF
		}
		changed, by := h.changed, h.readBy
		h.mu.Unlock()
		await(changed, due, by)
	}
}

// write sends, and waits for room.
func (h *half) write(b []byte) (int, error) {
	sent := 0
	for {
		open, _ := h.pipe.link.state()
		h.mu.Lock()
		switch {
		case h.writeErr != nil:
			defer h.mu.Unlock()
			return sent, h.writeErr
		case h.unread && open && !h.lost:
			defer h.mu.Unlock()
			return sent, errReset
		case h.ended:
			defer h.mu.Unlock()
			return sent, net.ErrClosed
		case !h.writeBy.IsZero() && !time.Now().Before(h.writeBy):
			defer h.mu.Unlock()
			return sent, os.ErrDeadlineExceeded
		case h.size < window:
			n := min(len(b)-sent, window-h.size)
			h.chunks = append(h.chunks, chunk{sent: time.Now(), data: append([]byte(nil), b[sent:sent+n]...)})
			h.size += n
			sent += n
			close(h.changed)
			h.changed = make(chan struct{})
			if sent == len(b) {
				h.mu.Unlock()
				return sent, nil
			}
		}
		changed, by := h.changed, h.writeBy
		h.mu.Unlock()
		await(changed, by)
	}
}

// await waits for a change, or for the first of some times that are not zero.
func await(changed <-chan struct{}, times ...time.Time) {
	var next time.Time
	for _, t := range times {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	if next.IsZero() {
		<-changed
		return
	}
	timer := time.NewTimer(time.Until(next))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	}
}

// conn is one end of a pipe.
type conn struct {
	p             *pipe
	in, out       *half
	local, remote string
	once          sync.Once
}

var _ net.Conn = (*conn)(nil)

func (c *conn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *conn) Write(b []byte) (int, error) { return c.out.write(b) }

// Close lets the other end read what is under way, and then the end.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.in.change(func(h *half) { h.readErr, h.unread = first(h.readErr, net.ErrClosed), true })
		c.out.change(func(h *half) { h.ended = true })
		if c.in.over() && c.out.over() {
			c.p.forget()
		}
	})
	return nil
}

// over reports whether there is no writer any longer.
func (h *half) over() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ended || h.writeErr != nil
}

func (c *conn) LocalAddr() net.Addr  { return address(c.local) }
func (c *conn) RemoteAddr() net.Addr { return address(c.remote) }

func (c *conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.change(func(h *half) { h.readBy = t })
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.out.change(func(h *half) { h.writeBy = t })
	return nil
}
