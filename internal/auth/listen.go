package auth

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// handshakeTimeout bounds the TLS handshake of a connection.
const handshakeTimeout = 10 * time.Second

var errHandshake = errors.New("no TLS, or a certificate that is not trusted or has expired")

// Keep is called once the handshake of a connection has finished: before, the peer has
// not proved that it has the key of its certificate. An error closes the connection.
// Forget is called when the connection is closed.
type Keep func(conn io.Closer, state tls.ConnectionState) (forget func(), err error)

// Listen returns a TLS listener for an HTTP server. It logs and counts connections whose
// handshake fails, and calls keep for the others.
func (g *Guard) Listen(l net.Listener, config *tls.Config, keep Keep) net.Listener {
	ctx, cancel := context.WithCancel(context.Background())
	return &listener{
		Listener: l, guard: g, config: config, keep: keep, ctx: ctx, cancel: cancel,
		ready: make(chan net.Conn), failed: make(chan error),
	}
}

// listener makes the handshakes, each in a goroutine of its own.
type listener struct {
	net.Listener
	guard  *Guard
	config *tls.Config
	keep   Keep
	// ctx ends when the listener is closed.
	ctx     context.Context
	cancel  context.CancelFunc
	accepts sync.Once
	ready   chan net.Conn
	failed  chan error
}

// Accept waits for the next connection whose handshake has finished, or whose peer
// speaks HTTP without TLS: the server tells that peer what is wrong.
func (l *listener) Accept() (net.Conn, error) {
	l.accepts.Do(func() { go l.accept() })
	select {
	case conn := <-l.ready:
		return conn, nil
	case err := <-l.failed:
		return nil, err
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close ends the listener, and the handshakes that have not finished.
func (l *listener) Close() error {
	l.cancel()
	return l.Listener.Close()
}

func (l *listener) accept() {
	for {
		raw, err := l.Listener.Accept()
		if err == nil {
			go l.handshake(raw)
			continue
		}
		select {
		case l.failed <- err:
		case <-l.ctx.Done():
			return
		}
	}
}

func (l *listener) handshake(raw net.Conn) {
	w := &watched{Conn: raw}
	conn := tls.Server(w, l.config)
	ctx, cancel := context.WithTimeout(l.ctx, handshakeTimeout)
	defer cancel()
	err := conn.HandshakeContext(ctx)
	switch {
	case err == nil:
		if w.forget, err = l.keep(raw, conn.ConnectionState()); err != nil {
			w.forget = nil
			_ = conn.Close()
			return
		}
	case !w.spoken.Load() || errors.Is(err, net.ErrClosed):
		// A peer that sends nothing only checks whether the port is open, and this side
		// closes connections of which too many are open.
		_ = conn.Close()
		return
	default:
		l.guard.refuseConnection(raw.RemoteAddr(), zap.Error(errHandshake))
		if !speaksHTTP(err) {
			_ = conn.Close()
			return
		}
	}
	select {
	case l.ready <- conn:
	case <-l.ctx.Done():
		_ = conn.Close()
	}
}

// speaksHTTP reports whether a handshake has failed because the peer speaks HTTP.
func speaksHTTP(handshake error) bool {
	var header tls.RecordHeaderError
	if !errors.As(handshake, &header) || header.Conn == nil {
		return false
	}
	switch string(header.RecordHeader[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		return true
	}
	return false
}

// watched is a connection that calls forget when it is closed.
type watched struct {
	net.Conn
	// spoken is whether the peer has sent anything.
	spoken, closed atomic.Bool
	// forget is set before the server gets the connection; nil if there is nothing to do.
	forget func()
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if n > 0 {
		w.spoken.Store(true)
	}
	return n, err
}

func (w *watched) Close() error {
	if !w.closed.Swap(true) && w.forget != nil {
		w.forget()
	}
	return w.Conn.Close()
}
