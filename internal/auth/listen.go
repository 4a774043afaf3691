package auth

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"

	"go.uber.org/zap"
)

var errHandshake = errors.New("no TLS, or a certificate that is not trusted or has ended")

// Listen returns a listener of TLS for a server of HTTP, that tells the guard of
// connections that are refused, and keep of those that are not; what keep returns is
// called when they are closed.
func (g *Guard) Listen(l net.Listener, config *tls.Config, keep func(io.Closer, tls.ConnectionState) (forget func())) net.Listener {
	return &listener{l, g, config, keep}
}

type listener struct {
	net.Listener
	guard  *Guard
	config *tls.Config
	keep   func(io.Closer, tls.ConnectionState) func()
}

func (l *listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	w := &watched{Conn: raw, guard: l.guard}
	config := l.config.Clone()
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := l.config.GetConfigForClient(hello)
		if err != nil {
			return nil, err
		}
		c = c.Clone()
		// The last that a handshake does with the client's certificate.
		c.VerifyConnection = func(state tls.ConnectionState) error {
			w.verified.Store(true)
			forget := l.keep(raw, state)
			w.forget.Store(&forget)
			if w.closed.Load() {
				w.forgotten()
			}
			return nil
		}
		return c, nil
	}
	return tls.Server(w, config), nil
}

// watched is a connection that may turn out to be refused.
type watched struct {
	net.Conn
	guard                          *Guard
	spoken, verified, told, closed atomic.Bool
	forget                         atomic.Pointer[func()]
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if n > 0 {
		w.spoken.Store(true)
	}
	return n, err
}

func (w *watched) Close() error {
	// Who says nothing only asks whether somebody listens.
	if w.spoken.Load() && !w.verified.Load() && !w.told.Swap(true) {
		w.guard.refuseConnection(w.RemoteAddr(), zap.Error(errHandshake))
	}
	w.closed.Store(true)
	w.forgotten()
	return w.Conn.Close()
}

// forgotten has the connection kept no more.
func (w *watched) forgotten() {
	if forget := w.forget.Swap(nil); forget != nil {
		(*forget)()
	}
}
