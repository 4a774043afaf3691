package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	mathrand "math/rand/v2"
	"sync"
	"time"
)

// cutSpread is the time over which connections are ended whose peers have to make
// new ones, so that not all come back at once.
const cutSpread = 10 * time.Second

// connections are those that are open, of peers that showed a certificate. The zero
// value has none.
type connections struct {
	mu   sync.Mutex
	open map[*connection]bool
}

// connection is one of them.
type connection struct {
	closer io.Closer
	// chain is what the peer showed, its own certificate first.
	chain []*x509.Certificate
	// cut is running, once the connection must end.
	cut *time.Timer
}

// Keep has a connection end when the root that vouches for its peer is no longer
// trusted. Closing it calls forget.
func (s *Source) Keep(c io.Closer, state tls.ConnectionState) (forget func()) {
	if len(state.PeerCertificates) == 0 {
		return func() {}
	}
	k := &connection{closer: c, chain: state.PeerCertificates}
	s.kept.mu.Lock()
	defer s.kept.mu.Unlock()
	if s.kept.open == nil {
		s.kept.open = map[*connection]bool{}
	}
	s.kept.open[k] = true
	// The roots may have changed since the handshake began.
	k.judge(s.Get().Roots)
	return func() {
		s.kept.mu.Lock()
		defer s.kept.mu.Unlock()
		delete(s.kept.open, k)
		if k.cut != nil {
			k.cut.Stop()
		}
	}
}

// judge ends each connection whose peer is no longer trusted, within cutSpread, and
// returns how many they are.
func (c *connections) judge(roots *x509.CertPool) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for k := range c.open {
		if k.judge(roots) {
			n++
		}
	}
	return n
}

func (k *connection) judge(roots *x509.CertPool) (ends bool) {
	if k.cut != nil || vouched(k.chain, roots) {
		return false
	}
	// Close does not wait: an error says that the connection has ended already.
	k.cut = time.AfterFunc(mathrand.N(cutSpread), func() { _ = k.closer.Close() })
	return true
}

// vouched tells whether roots vouch for a certificate, or did when it ended: a
// connection may outlive that.
func vouched(chain []*x509.Certificate, roots *x509.CertPool) bool {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	at := time.Now()
	if ended := chain[0].NotAfter; at.After(ended) {
		at = ended
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err == nil
}
