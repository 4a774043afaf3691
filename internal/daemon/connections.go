package daemon

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/musterhq/muster/internal/auth"
)

const (
	// defaultConnections is how many connections a port has open at most, unless the
	// settings say otherwise: more than a dispatcher has workers.
	defaultConnections = 20_000
	// securedPerHost is how many of them one host or identity may have with TLS, unless
	// the settings say otherwise.
	securedPerHost = 256
	// strangersShare is the part of a port's connections, one in so many, that peers
	// without a certificate may have together.
	strangersShare = 4
)

// The bounds, as metrics call them.
const (
	boundAll       = "all"
	boundStrangers = "strangers"
	boundHost      = "host"
	boundIdentity  = "identity"
)

// ConnectionSettings bound how many connections each port of a daemon has open.
type ConnectionSettings struct {
	// Most bounds the connections of a port. 0: no bound.
	Most int
	// PerHost bounds those of one host or, once a certificate was shown, of the identity
	// in it. 0: no bound; -1: securedPerHost with TLS, and no bound in the clear.
	PerHost int
}

// DefaultConnectionSettings returns the defaults.
func DefaultConnectionSettings() ConnectionSettings {
	return ConnectionSettings{Most: defaultConnections, PerHost: -1}
}

// AddFlags adds the settings.
func (s *ConnectionSettings) AddFlags(fs *pflag.FlagSet) {
	*s = DefaultConnectionSettings()
	fs.IntVar(&s.Most, "max-connections", s.Most, fmt.Sprintf("connections that each port may have open, with TLS one in %d of them without a client certificate; 0: no limit", strangersShare))
	fs.IntVar(&s.PerHost, "max-connections-per-host", s.PerHost,
		fmt.Sprintf("connections to each port that one host may have open or, with a client certificate, its identity; 0: no limit; -1: %d with TLS, and no limit in the clear", securedPerHost))
}

// Validate names every setting that cannot be.
func (s ConnectionSettings) Validate() error {
	var faults []error
	if s.Most != 0 && s.Most < strangersShare {
		faults = append(faults, fmt.Errorf("--max-connections: %d is neither 0 (no limit) nor %d or more", s.Most, strangersShare))
	}
	if s.PerHost < -1 {
		faults = append(faults, fmt.Errorf("--max-connections-per-host: %d is less than -1", s.PerHost))
	}
	return errors.Join(faults...)
}

// Connections bounds the connections of the servers of a process.
type Connections struct {
	settings ConnectionSettings
	secure   bool
	log      *zap.Logger
	refused  *prometheus.CounterVec
	open     *prometheus.GaugeVec
}

// NewConnections returns bounds. Secure says that the servers use TLS: peers without a
// certificate then share one part of the connections.
func NewConnections(s ConnectionSettings, secure bool, log *zap.Logger, metrics prometheus.Registerer) (*Connections, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	switch {
	case s.PerHost < 0 && secure:
		s.PerHost = securedPerHost
	case s.PerHost < 0:
		s.PerHost = 0
	}
	c := &Connections{
		settings: s, secure: secure,
		// Peers decide how often they are refused, and must not fill the log.
		log: log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
			return zapcore.NewSamplerWithOptions(c, time.Second, 5, 1000)
		})),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_connections_refused_total", Help: "Connections that were refused because too many were open, by bound.",
		}, []string{"limit"}),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "muster_connections", Help: "Connections that are open, by server.",
		}, []string{"server"}),
	}
	for _, bound := range []string{boundAll, boundStrangers, boundHost, boundIdentity} {
		c.refused.WithLabelValues(bound)
	}
	for _, m := range []prometheus.Collector{c.refused, c.open} {
		if err := metrics.Register(m); err != nil {
			return nil, fmt.Errorf("register metrics of connections: %w", err)
		}
	}
	return c, nil
}

// Listen returns a listener that closes connections beyond the bounds at once. Server
// names it in metrics and the log. The credentials of this package count a connection
// under the identity of its peer as soon as a certificate shows that.
func (c *Connections) Listen(l net.Listener, server string) net.Listener {
	return &boundedListener{Listener: l, bounds: c, server: server, open: c.open.WithLabelValues(server), held: map[string]int{}}
}

// boundedListener bounds the connections of one port.
type boundedListener struct {
	net.Listener
	bounds *Connections
	server string
	open   prometheus.Gauge

	mu sync.Mutex
	// all counts connections, and strangers those of them without a certificate.
	all, strangers int
	// held counts connections by host or identity.
	held map[string]int
}

// Accept waits for the next connection that is within the bounds.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if conn := l.admit(raw); conn != nil {
			return conn, nil
		}
		// Its peer learns that by the end of the connection.
		_ = raw.Close()
	}
}

// admit counts a connection; nil if there are too many.
func (l *boundedListener) admit(raw net.Conn) net.Conn {
	limits, key := l.bounds.settings, auth.HostOf(raw.RemoteAddr().String())
	l.mu.Lock()
	bound := ""
	switch {
	case limits.Most > 0 && l.all >= limits.Most:
		bound = boundAll
	case limits.Most > 0 && l.bounds.secure && l.strangers >= limits.Most/strangersShare:
		bound = boundStrangers
	case limits.PerHost > 0 && l.held[key] >= limits.PerHost:
		bound = boundHost
	default:
		l.all++
		l.strangers++
		l.held[key]++
	}
	l.mu.Unlock()
	if bound != "" {
		l.refuse(bound, key, raw)
		return nil
	}
	l.open.Inc()
	return &boundedConn{Conn: raw, listener: l, key: key, stranger: true}
}

// refuse logs and counts a connection that is one too many.
func (l *boundedListener) refuse(bound, key string, conn net.Conn) {
	l.bounds.refused.WithLabelValues(bound).Inc()
	setting := "--max-connections"
	if bound == boundHost || bound == boundIdentity {
		setting = "--max-connections-per-host"
	}
	l.bounds.log.Warn("connection refused: too many are open", zap.String("limit", bound), zap.String("setting", setting),
		zap.String("server", l.server), zap.String("client", key), zap.Stringer("peer", conn.RemoteAddr()))
}

// boundedConn is a connection that is counted until it is closed.
type boundedConn struct {
	net.Conn
	listener *boundedListener
	// The listener's lock guards the rest. Key is the host or the identity that the
	// connection is counted under.
	key              string
	stranger, closed bool
}

// CloseWrite lets a server of HTTP finish an answer to a peer that is still sending.
func (c *boundedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Close ends the connection.
func (c *boundedConn) Close() error {
	c.release()
	return c.Conn.Close()
}

func (c *boundedConn) release() {
	l := c.listener
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	l.open.Dec()
	l.all--
	if c.stranger {
		l.strangers--
	}
	l.drop(c.key)
}

// drop counts one connection less under a key. The caller holds the lock.
func (l *boundedListener) drop(key string) {
	if l.held[key]--; l.held[key] <= 0 {
		delete(l.held, key)
	}
}

var errTooManyConnections = errors.New("too many connections are open with this certificate's identity: the daemon's --max-connections-per-host bounds them")

// identified counts a connection under the identity in its peer's certificate. It fails
// if that identity has too many.
func identified(conn io.Closer, state tls.ConnectionState) error {
	c, ok := conn.(*boundedConn)
	if !ok || len(state.VerifiedChains) == 0 {
		return nil
	}
	id, err := auth.FromCertificate(state.PeerCertificates[0])
	if err != nil {
		// It remains one of its host: the guard refuses every call.
		return nil
	}
	key, l := id.URI().String(), c.listener
	l.mu.Lock()
	if c.closed || !c.stranger {
		l.mu.Unlock()
		return nil
	}
	if most := l.bounds.settings.PerHost; most > 0 && l.held[key] >= most {
		l.mu.Unlock()
		l.refuse(boundIdentity, key, c)
		return errTooManyConnections
	}
	l.drop(c.key)
	l.strangers--
	c.key, c.stranger = key, false
	l.held[key]++
	l.mu.Unlock()
	return nil
}
