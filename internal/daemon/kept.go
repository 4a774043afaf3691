package daemon

import (
	"context"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"

	"github.com/musterhq/muster/internal/mtls"
)

// kept are credentials whose connections end when the root that signed the peer's
// certificate is no longer trusted, for servers and clients. Checking handshakes alone
// would leave open connections as they are.
type kept struct {
	credentials.TransportCredentials
	source *mtls.Source
}

func (k *kept) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return k.keep(k.TransportCredentials.ClientHandshake(ctx, authority, raw))
}

func (k *kept) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := k.TransportCredentials.ServerHandshake(raw)
	if shown, ok := info.(credentials.TLSInfo); ok && err == nil {
		err = handshakeFinished(raw, shown.State)
	}
	return k.keep(conn, info, err)
}

func (k *kept) Clone() credentials.TransportCredentials {
	return &kept{k.TransportCredentials.Clone(), k.source}
}

func (k *kept) keep(conn net.Conn, info credentials.AuthInfo, err error) (net.Conn, credentials.AuthInfo, error) {
	if err != nil {
		return nil, nil, err
	}
	if shown, ok := info.(credentials.TLSInfo); ok {
		conn = &keptConn{Conn: conn, forget: sync.OnceFunc(k.source.Keep(conn, shown.State))}
	}
	return conn, info, nil
}

// keptConn is a connection that is tracked until it is closed.
type keptConn struct {
	net.Conn
	forget func()
}

func (c *keptConn) Close() error {
	c.forget()
	return c.Conn.Close()
}
