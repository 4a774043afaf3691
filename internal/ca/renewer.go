package ca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/atomicfile"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/mtls"
)

// Pauses between attempts to get a certificate.
const (
	firstPause = time.Second
	lastPause  = time.Minute
)

// Issuer signs requests for one identity. Current is the holder's present certificate, or
// nil if there is none that is valid.
type Issuer interface {
	Issue(ctx context.Context, request []byte, current *mtls.Source) (*Issued, error)
}

// Checker is an Issuer that can be asked about new roots. With any other Issuer a renewer
// learns of them when it renews.
type Checker interface {
	// Check returns the authority's roots in PEM, and when to ask again.
	Check(ctx context.Context, current *mtls.Source) (authorities []byte, again time.Duration, err error)
}

// RenewerConfig says which certificate to renew.
type RenewerConfig struct {
	// Path is the file that holds key, certificate and authorities. If it is empty they are
	// kept in memory only.
	Path   string
	Issuer Issuer
	// Identity is the certificate's identity. Its domain does not matter.
	Identity auth.Identity
	// Hosts are the names and IP addresses that the certificate of a manager daemon
	// should be for. The authority grants those that an administrator allowed.
	Hosts  []string
	Logger *zap.Logger
}

// Renewer holds a certificate and renews it before it expires.
type Renewer struct {
	cfg    RenewerConfig
	source *mtls.Source
	// held is what the source holds, in PEM. Run alone changes it, and the rest.
	held held
	// interval is how often apid wants to be asked what the authority is.
	interval time.Duration
	// checkBackoff is the pause after apid did not answer a check.
	checkBackoff *backoff.Backoff
}

// held is a certificate with its key, and the authorities that verify peers.
type held struct{ certificate, key, authorities []byte }

// Join returns a renewer of the certificate in the file. If there is none it gets a first
// one, and waits for it.
func Join(ctx context.Context, cfg RenewerConfig) (*Renewer, error) {
	k := &Renewer{cfg: cfg, interval: DefaultCheckInterval, checkBackoff: backoff.New(2*firstPause, DefaultCheckInterval)}
	m, err := k.load()
	switch {
	case err == nil && time.Now().Before(m.Certificate.Leaf.NotAfter):
		k.source = mtls.NewSource(m)
		k.rejoin(ctx)
		return k, nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, err
	case err == nil:
		cfg.Logger.Warn("certificate has expired; requesting a new one", zap.Time("ended", m.Certificate.Leaf.NotAfter))
	}
	key := known(m)
	for attempts := backoff.New(firstPause, lastPause); ; {
		m, err := k.obtain(ctx, key, nil)
		if err == nil {
			k.source = mtls.NewSource(m)
			return k, nil
		}
		if errors.Is(err, errFinal) || ctx.Err() != nil {
			return nil, err
		}
		pause := attempts.Next()
		cfg.Logger.Warn("no certificate yet; trying again", zap.Duration("in", pause), zap.Error(err))
		if backoff.Sleep(ctx, pause) != nil {
			return nil, ctx.Err()
		}
	}
}

// keyOf returns the key of a certificate.
func keyOf(m *mtls.Material) *ecdsa.PrivateKey {
	key, _ := m.Certificate.PrivateKey.(*ecdsa.PrivateKey)
	return key
}

// rejoin joins again if the join token names an unknown root and the present certificate is
// no longer valid. Then the root was replaced while this process was off or cut off.
func (k *Renewer) rejoin(ctx context.Context) {
	tokens, ok := k.cfg.Issuer.(interface {
		Checker
		Knows(authorities []byte) bool
	})
	if !ok || tokens.Knows(k.held.authorities) {
		return
	}
	if _, _, err := tokens.Check(ctx, k.source); err == nil {
		return
	}
	m, err := k.obtain(ctx, keyOf(k.source.Get()), nil)
	if err != nil {
		k.cfg.Logger.Warn("join token names an unknown root, and joining again failed", zap.Error(err))
		return
	}
	ending := k.source.Set(m)
	k.cfg.Logger.Info("joined again under a different root", zap.Int("connections_that_end", ending))
}

// Source returns the source of the newest certificate.
func (k *Renewer) Source() *mtls.Source { return k.source }

// Run renews the certificate, and learns of new roots, until ctx ends.
func (k *Renewer) Run(ctx context.Context) error {
	attempts := backoff.New(firstPause, lastPause)
	leaf := k.source.Get().Certificate.Leaf
	next := renewal(leaf)
	if k.otherHosts(leaf) {
		// The settings have changed since, or another version asked for it.
		next = time.Now()
	}
	check := time.Now()
	for {
		wake := next
		if check.Before(next) {
			wake = check
		}
		if backoff.Sleep(ctx, time.Until(wake)) != nil {
			return nil
		}
		if now := time.Now(); now.Before(next) {
			renew, again := k.check(ctx)
			check = now.Add(again)
			if l := k.source.Get().Certificate.Leaf; l != leaf {
				leaf, next = l, renewal(l)
			}
			if !renew {
				continue
			}
		}
		m, err := k.obtain(ctx, known(k.source.Get()), k.source)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			left := time.Until(leaf.NotAfter)
			pause, log := attempts.Next(), k.cfg.Logger.Warn
			if left > 0 {
				pause = min(pause, max(left/4, firstPause))
			} else {
				log = k.cfg.Logger.Error
			}
			log("the certificate is not renewed; trying again", zap.Duration("in", pause), zap.Duration("ends_in", left), zap.Error(err))
			next = time.Now().Add(pause)
		default:
			k.source.Set(m)
			attempts.Reset()
			leaf = m.Certificate.Leaf
			next = renewal(leaf)
			// Report at once that the new certificate is there.
			check = time.Now()
			k.cfg.Logger.Info("certificate is renewed", zap.String("serial", leaf.SerialNumber.Text(16)), zap.Time("ends", leaf.NotAfter))
		}
	}
}

// known returns the key of a certificate that has expired, or nil. Its holder joins again,
// and the authority recognises it by the key. Before the expiry a new key is better.
func known(m *mtls.Material) *ecdsa.PrivateKey {
	if m == nil || time.Now().Before(m.Certificate.Leaf.NotAfter) {
		return nil
	}
	return keyOf(m)
}

// check asks for the authority's roots and trusts them. It reports whether a certificate of
// a new root is needed, and when to ask again: around the time that apid names, at random,
// so that not all ask at once.
func (k *Renewer) check(ctx context.Context) (renew bool, again time.Duration) {
	checker, ok := k.cfg.Issuer.(Checker)
	if !ok {
		return false, DefaultCheckInterval
	}
	authorities, interval, err := checker.Check(ctx, k.source)
	if err != nil {
		again := min(k.checkBackoff.Next(), max(k.interval, firstPause))
		if ctx.Err() == nil {
			k.cfg.Logger.Warn("failed to check whether the root has changed; retrying", zap.Duration("in", again), zap.Error(err))
			k.rejoin(ctx)
		}
		return false, again
	}
	k.interval = max(interval, firstPause)
	k.checkBackoff.Reset()
	again = time.Duration(float64(k.interval) * (0.75 + 0.5*mathrand.Float64()))
	if bytes.Equal(authorities, k.held.authorities) {
		return false, again
	}
	m := k.source.Get()
	if signs, _ := pem.Decode(authorities); signs == nil || hex.EncodeToString(digestOf(signs.Bytes)) != m.Root {
		k.cfg.Logger.Info("root has changed; requesting a new certificate")
		return true, again
	}
	h := k.held
	h.authorities = authorities
	m, err = k.keep(h)
	if err != nil {
		k.cfg.Logger.Warn("failed to store the trusted roots; retrying", zap.Duration("in", again), zap.Error(err))
		return false, again
	}
	ending := k.source.Set(m)
	k.cfg.Logger.Info("trusted roots have changed", zap.Int("connections_that_end", ending))
	return false, again
}

// otherHosts reports whether a certificate names other hosts than it should.
func (k *Renewer) otherHosts(c *x509.Certificate) bool {
	want := k.cfg.Hosts
	if own := OwnHost(k.cfg.Identity.Role); own != "" {
		want = append([]string{own}, want...)
	}
	have := hostsOf(c)
	return len(without(want, have))+len(without(have, want)) > 0
}

// renewal returns when to renew: at random between 50 and 80 % of the lifetime, so that not
// all renew at once.
func renewal(c *x509.Certificate) time.Time {
	life := c.NotAfter.Sub(c.NotBefore)
	if life > 4*backdate {
		life -= backdate
	}
	return c.NotAfter.Add(-time.Duration(float64(life) * (0.2 + 0.3*mathrand.Float64())))
}

// obtain asks for a certificate and saves it. It makes a new key unless one is given.
func (k *Renewer) obtain(ctx context.Context, key *ecdsa.PrivateKey, current *mtls.Source) (*mtls.Material, error) {
	if key == nil {
		var err error
		if key, err = newKey(); err != nil {
			return nil, err
		}
	}
	request, err := newRequest(key, k.cfg.Hosts)
	if err != nil {
		return nil, err
	}
	issued, err := k.cfg.Issuer.Issue(ctx, request, current)
	if err != nil {
		return nil, err
	}
	text, err := keyPEM(key)
	if err != nil {
		return nil, err
	}
	m, err := k.keep(held{issued.Certificate, text, issued.Authorities})
	if err != nil {
		return nil, err
	}
	if missing := without(k.cfg.Hosts, hostsOf(m.Certificate.Leaf)); len(missing) > 0 {
		k.cfg.Logger.Warn("certificate lacks host names that were asked for; --allow-certificate-host of apid allows them", zap.Strings("missing", missing))
	}
	return m, nil
}

// keep writes the certificate to the file.
func (k *Renewer) keep(h held) (*mtls.Material, error) {
	m, err := k.material(h.certificate, h.key, h.authorities)
	if err != nil {
		return nil, err
	}
	if k.cfg.Path != "" {
		content := slices.Concat(h.key, h.certificate, pem.EncodeToMemory(&pem.Block{Type: authoritiesBlock, Bytes: h.authorities}))
		if err := os.MkdirAll(filepath.Dir(k.cfg.Path), 0o700); err != nil {
			return nil, fmt.Errorf("make directory of certificate: %w", err)
		}
		if err := atomicfile.Write(k.cfg.Path, content); err != nil {
			return nil, fmt.Errorf("write certificate: %w", err)
		}
	}
	k.held = h
	return m, nil
}

// authoritiesBlock is the PEM block that holds the authorities. They are PEM within it, so
// that they are not taken for part of the certificate's chain.
const authoritiesBlock = "MUSTER AUTHORITIES"

func (k *Renewer) material(certificate, key, authorities []byte) (*mtls.Material, error) {
	m, err := mtls.NewMaterial(certificate, key, authorities)
	if err != nil {
		return nil, err
	}
	if m.Identity.Role != k.cfg.Identity.Role || m.Identity.Name != k.cfg.Identity.Name {
		return nil, fmt.Errorf("%w: the certificate is that of %s, and this is %s", errFinal, m.Identity, k.cfg.Identity)
	}
	return m, nil
}

func (k *Renewer) load() (*mtls.Material, error) {
	if k.cfg.Path == "" {
		return nil, os.ErrNotExist
	}
	content, err := os.ReadFile(k.cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	var h held
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case authoritiesBlock:
			h.authorities = block.Bytes
		case "CERTIFICATE":
			h.certificate = append(h.certificate, pem.EncodeToMemory(block)...)
		default:
			h.key = append(h.key, pem.EncodeToMemory(block)...)
		}
	}
	m, err := k.material(h.certificate, h.key, h.authorities)
	if err != nil {
		return nil, fmt.Errorf("read %s (remove it to join again): %w", k.cfg.Path, err)
	}
	k.held = h
	return m, nil
}
