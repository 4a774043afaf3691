package auth

import (
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"

	"go.uber.org/zap"
)

var errHandshake = errors.New("no TLS, or a certificate that is not trusted or has ended")

// Listen returns a listener of TLS for a server of HTTP, that tells the guard of
// connections that are refused.
func (g *Guard) Listen(l net.Listener, config *tls.Config) net.Listener {
	return &listener{l, g, config}
}

type listener struct {
	net.Listener
	guard  *Guard
	config *tls.Config
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
		c.VerifyConnection = func(tls.ConnectionState) error {
			w.verified.Store(true)
			return nil
		}
		return c, nil
	}
	return tls.Server(w, config), nil
}

// watched is a connection that may turn out to be refused.
type watched struct {
	net.Conn
	guard                  *Guard
	spoken, verified, told atomic.Bool
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
	return w.Conn.Close()
}
