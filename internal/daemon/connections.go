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
	"github.com/musterhq/muster/internal/quota"
)

const (
	// defaultConnections is the default number of connections that a port may have open:
	// more than a dispatcher has workers.
	defaultConnections = 20_000
	// securedPerHost is the default number of connections of one host or identity, with
	// TLS.
	securedPerHost = 256
	// unauthenticatedShare is the divisor for the part of a port's connections that peers
	// without a certificate may have together. Another part of the same size is reserved
	// for connections whose TLS handshake has not finished.
	unauthenticatedShare = 4
)

// The names of the bounds in metrics and the log.
const (
	boundAll             = "all"
	boundUnauthenticated = "unauthenticated"
	boundHost            = "host"
	boundIdentity        = "identity"
	boundHandshakes      = "handshakes"
)

// The flags of the bounds, for the log.
const (
	settingMost    = "--max-connections"
	settingPerHost = "--max-connections-per-host"
)

// ConnectionSettings bound the open connections of each port of a daemon.
type ConnectionSettings struct {
	// Most bounds the connections of a port, including those in the TLS handshake. 0 means
	// no bound.
	Most int
	// PerHost bounds the connections of one identity, which a client certificate states, or
	// without a certificate of one host. 0 means no bound; -1 means securedPerHost with
	// TLS, and no bound without.
	PerHost int
}

// DefaultConnectionSettings returns the defaults.
func DefaultConnectionSettings() ConnectionSettings {
	return ConnectionSettings{Most: defaultConnections, PerHost: -1}
}

// AddFlags adds the settings.
func (s *ConnectionSettings) AddFlags(fs *pflag.FlagSet) {
	*s = DefaultConnectionSettings()
	fs.IntVar(&s.Most, "max-connections", s.Most, fmt.Sprintf("connections that each port may have open, with TLS at most one in %[1]d of them without a client certificate, and one in %[1]d for handshakes only; 0: no limit", unauthenticatedShare))
	fs.IntVar(&s.PerHost, "max-connections-per-host", s.PerHost,
		fmt.Sprintf("connections to each port that one host may have open or, with a client certificate, its identity; 0: no limit; -1: %d with TLS, and no limit in the clear", securedPerHost))
}

// Validate returns an error that names every invalid setting.
func (s ConnectionSettings) Validate() error {
	var faults []error
	if s.Most != 0 && s.Most < unauthenticatedShare {
		faults = append(faults, fmt.Errorf("--max-connections: %d is neither 0 (no limit) nor %d or more", s.Most, unauthenticatedShare))
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

// NewConnections returns bounds. Secure means that the servers use TLS: peers without a
// certificate then share one part of the connections, and unfinished handshakes have
// another part for themselves.
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
		// Peers decide how often this happens, and must not fill the log.
		log: log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
			return zapcore.NewSamplerWithOptions(c, time.Second, 5, 1000)
		})),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_connections_refused_total", Help: "Connections that were closed because too many were open, by bound.",
		}, []string{"limit"}),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "muster_connections", Help: "Connections that are open, by server.",
		}, []string{"server"}),
	}
	for _, bound := range []string{boundAll, boundUnauthenticated, boundHost, boundIdentity, boundHandshakes} {
		c.refused.WithLabelValues(bound)
	}
	for _, m := range []prometheus.Collector{c.refused, c.open} {
		if err := metrics.Register(m); err != nil {
			return nil, fmt.Errorf("register metrics of connections: %w", err)
		}
	}
	return c, nil
}

// Listen returns a listener that enforces the bounds. Server is its name in metrics and the
// log. With TLS the server must use the credentials of this package: they tell the listener
// when a handshake has finished, and with which certificate.
func (c *Connections) Listen(l net.Listener, server string) net.Listener {
	return &boundedListener{
		Listener: l, bounds: c, server: server, open: c.open.WithLabelValues(server),
		byClient: quota.NewOpen(c.settings.PerHost), handshakes: newHandshakes(c.settings, c.secure),
	}
}

// boundedListener bounds the connections of one port.
type boundedListener struct {
	net.Listener
	bounds *Connections
	server string
	open   prometheus.Gauge

	mu sync.Mutex
	// all counts connections, with TLS those whose handshake has finished. unauthenticated
	// counts those of them without a client certificate.
	all, unauthenticated int
	// byClient counts them by identity or host.
	byClient *quota.Open
	// handshakes are the connections whose handshake has not finished. Room is reserved for
	// them. If they shared it with finished connections, a nearly full port would leave so
	// little that a few silent peers could end all handshakes.
	handshakes *handshakes
}

// Accept waits for the next connection within the bounds.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if conn := l.admit(raw); conn != nil {
			return conn, nil
		}
		// The peer sees the end of the connection.
		_ = raw.Close()
	}
}

// admit counts a connection, and returns nil if there are too many. With TLS, only the
// handshake shows which bounds apply to the peer. Until then the connection can replace
// another one whose handshake has not finished.
func (l *boundedListener) admit(raw net.Conn) net.Conn {
	c := &boundedConn{Conn: raw, listener: l, host: auth.HostOf(raw.RemoteAddr().String())}
	var (
		evicted        *boundedConn
		setting, bound string
	)
	l.mu.Lock()
	if l.bounds.secure {
		if evicted, setting = l.handshakes.evict(c.host); evicted != nil {
			l.remove(evicted)
		}
		l.handshakes.add(c)
	} else {
		bound = l.count(c, c.host, false)
	}
	if bound == "" {
		l.open.Inc()
	}
	l.mu.Unlock()
	if evicted != nil {
		l.report("connection closed: too many handshakes have not finished", boundHandshakes, setting, evicted.host, evicted)
		// The handshake that reads from it fails.
		_ = evicted.Conn.Close()
	}
	if bound != "" {
		l.refused(bound, c.host, c)
		return nil
	}
	return c
}

// count counts a connection under a client, which is an identity or a host. If that is one
// too many it returns the bound instead. The caller holds the lock.
func (l *boundedListener) count(c *boundedConn, client string, certified bool) (bound string) {
	limits := l.bounds.settings
	unauthenticated := l.bounds.secure && !certified
	switch {
	case limits.Most > 0 && l.all >= limits.Most-l.handshakes.most:
		return boundAll
	case unauthenticated && limits.Most > 0 && l.unauthenticated >= limits.Most/unauthenticatedShare:
		return boundUnauthenticated
	case l.byClient.Enter(client):
	case certified:
		return boundIdentity
	default:
		return boundHost
	}
	c.client, c.unauthenticated = client, unauthenticated
	l.all++
	if unauthenticated {
		l.unauthenticated++
	}
	return ""
}

// remove stops counting a connection. The caller holds the lock.
func (l *boundedListener) remove(c *boundedConn) {
	if c.closed {
		return
	}
	c.closed = true
	l.open.Dec()
	l.handshakes.remove(c)
	if c.client == "" {
		return
	}
	l.all--
	if c.unauthenticated {
		l.unauthenticated--
	}
	l.byClient.Leave(c.client)
}

func (l *boundedListener) refused(bound, client string, conn net.Conn) {
	setting := settingMost
	if bound == boundHost || bound == boundIdentity {
		setting = settingPerHost
	}
	l.report("connection refused: too many are open", bound, setting, client, conn)
}

// report logs and counts a connection that is closed because of a bound.
func (l *boundedListener) report(message, bound, setting, client string, conn net.Conn) {
	l.bounds.refused.WithLabelValues(bound).Inc()
	l.bounds.log.Warn(message, zap.String("limit", bound), zap.String("setting", setting),
		zap.String("server", l.server), zap.String("client", client), zap.Stringer("peer", conn.RemoteAddr()))
}

// boundedConn is a connection that is counted until it is closed.
type boundedConn struct {
	net.Conn
	listener *boundedListener
	host     string

	// The listener's lock guards the rest. Client is the identity or host that the
	// connection is counted under. It is empty until the handshake has finished.
	client                  string
	unauthenticated, closed bool
	// place is where the connection is in the queues of handshakes, or nil.
	place *place
}

// CloseWrite lets an HTTP server finish an answer to a peer that is still sending.
func (c *boundedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Close ends the connection.
func (c *boundedConn) Close() error {
	c.listener.mu.Lock()
	c.listener.remove(c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

var (
	errTooManyConnections = errors.New("too many connections are open: the daemon's --max-connections and --max-connections-per-host bound them")
	errClosedMeanwhile    = errors.New("the connection was closed during the handshake")
)

// handshakeFinished counts a connection under the identity in its peer's certificate, or
// under its host if the peer showed no certificate. It fails if that is one too many.
func handshakeFinished(conn io.Closer, state tls.ConnectionState) error {
	c, ok := conn.(*boundedConn)
	if !ok || !c.listener.bounds.secure {
		return nil
	}
	l, client, certified := c.listener, c.host, false
	if len(state.VerifiedChains) > 0 {
		// The guard refuses every call of a certificate without an identity.
		if id, err := auth.FromCertificate(state.PeerCertificates[0]); err == nil {
			client, certified = id.URI().String(), true
		}
	}
	l.mu.Lock()
	if c.closed {
		l.mu.Unlock()
		return errClosedMeanwhile
	}
	l.handshakes.remove(c)
	bound := l.count(c, client, certified)
	l.mu.Unlock()
	if bound != "" {
		l.refused(bound, client, c)
		return errTooManyConnections
	}
	return nil
}
