package consul

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Consul refuses connections beyond limits.http_max_conns_per_client (200) from one
// address, and daemons may share one. These numbers bound how many connections one
// client has open to one host, in addition to one per blocked list.
const (
	// callConns is the number of connections for non-blocking calls.
	callConns = 3
	// reportConns is the number of connections for the reports that keep a session alive
	// and for probes. They must not wait behind calls.
	reportConns = 1
)

// handshakeTimeout bounds a TLS handshake.
const handshakeTimeout = 5 * time.Second

// pools sends requests over connections of three kinds. Blocked lists have
// connections of their own, so that no other call waits for one of them to end.
type pools struct {
	calls, reports, watches http.RoundTripper
	transports              []*http.Transport
	open                    *atomic.Int64
}

// newPools creates the pools from one transport, whose TLS settings they share.
func newPools(base *http.Transport) *pools {
	p := &pools{open: &atomic.Int64{}}
	pool := func(conns int) http.RoundTripper {
		t := base.Clone()
		t.MaxConnsPerHost, t.MaxIdleConnsPerHost = conns, conns
		if conns == 0 {
			t.MaxIdleConnsPerHost = t.MaxIdleConns
		}
		t.DialContext = p.dialer(base.DialContext)
		if t.TLSClientConfig != nil {
			t.DialTLSContext = p.dialer(tlsDialer(base.DialContext, t.TLSClientConfig))
		}
		p.transports = append(p.transports, t)
		return t
	}
	p.calls, p.reports, p.watches = pool(callConns), pool(reportConns), pool(0)
	return p
}

func (p *pools) closeIdle() {
	for _, t := range p.transports {
		t.CloseIdleConnections()
	}
}

type poolKey struct{}

// watching returns a context for a request that waits for a change.
func watching(ctx context.Context) context.Context { return context.WithValue(ctx, poolKey{}, "watch") }

// reporting returns a context for a request that must not wait behind other calls.
func reporting(ctx context.Context) context.Context {
	return context.WithValue(ctx, poolKey{}, "report")
}

// RoundTrip sends a request over the pool that its context selects.
func (p *pools) RoundTrip(req *http.Request) (*http.Response, error) {
	switch req.Context().Value(poolKey{}) {
	case "watch":
		return p.watches.RoundTrip(req)
	case "report":
		return p.reports.RoundTrip(req)
	}
	return p.calls.RoundTrip(req)
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// dialer returns a dialer that counts connections and wraps them in conn.
func (p *pools) dialer(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		p.open.Add(1)
		return &conn{Conn: c, open: p.open, began: make(chan struct{})}, nil
	}
}

// tlsDialer returns a dialer that uses TLS.
func tlsDialer(dial dialFunc, cfg *tls.Config) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		raw, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		own := cfg.Clone()
		if own.ServerName == "" {
			if own.ServerName, _, err = net.SplitHostPort(address); err != nil {
				return nil, errors.Join(err, raw.Close())
			}
		}
		ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
		defer cancel()
		c := tls.Client(raw, own)
		if err := c.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, raw.Close())
		}
		return c, nil
	}
}

// conn is a connection to Consul. An agent with too many connections sends 429 on a new
// one before it has read anything. http.Transport treats such an answer as an error, so
// conn delays reading until the first request has been sent.
type conn struct {
	net.Conn
	open   *atomic.Int64
	start  sync.Once
	began  chan struct{}
	closed sync.Once
}

func (c *conn) Read(b []byte) (int, error) {
	<-c.began
	return c.Conn.Read(b)
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.start.Do(func() { close(c.began) })
	return n, err
}

func (c *conn) Close() error {
	c.closed.Do(func() { c.open.Add(-1) })
	c.start.Do(func() { close(c.began) })
	return c.Conn.Close()
}

// newTransport returns the transport that the pools are created from.
func newTransport() *http.Transport {
	// A blocked list notices after about 20 s that its server has vanished.
	dialer := &net.Dialer{
		Timeout:         3 * time.Second,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 3},
	}
	return &http.Transport{
		DialContext:           dialer.DialContext,
		MaxIdleConns:          256,
		IdleConnTimeout:       time.Minute,
		DisableCompression:    true,
		ResponseHeaderTimeout: 0, // blocked lists answer late
	}
}
