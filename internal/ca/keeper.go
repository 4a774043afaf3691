package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/mtls"
)

// Times of attempts to get a certificate.
const (
	firstPause = time.Second
	lastPause  = time.Minute
)

// Issuer signs requests for one identity. Current is what its holder proves
// himself with, nil if he cannot yet, or not any more.
type Issuer interface {
	Issue(ctx context.Context, request []byte, current *mtls.Source) (*Issued, error)
}

// KeeperConfig says whose certificate to keep.
type KeeperConfig struct {
	// Path is the file that holds key, certificate and authorities. Empty: they are
	// in memory only.
	Path   string
	Issuer Issuer
	// Identity is whose certificate it is; its domain does not matter.
	Identity auth.Identity
	// Hosts are the names and IP addresses that a manager daemon is reached at.
	Hosts  []string
	Logger *zap.Logger
}

// Keeper holds a certificate, and sees to the next one before it ends.
type Keeper struct {
	cfg    KeeperConfig
	source *mtls.Source
}

// Enrol returns a keeper of the certificate that is in the file, or else of a
// first one, which it waits for.
func Enrol(ctx context.Context, cfg KeeperConfig) (*Keeper, error) {
	k := &Keeper{cfg: cfg}
	m, err := k.load()
	switch {
	case err == nil && time.Now().Before(m.Certificate.Leaf.NotAfter):
		k.source = mtls.NewSource(m)
		return k, nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, err
	case err == nil:
		cfg.Logger.Warn("the certificate has ended, and a new one is asked for", zap.Time("ended", m.Certificate.Leaf.NotAfter))
	}
	key := known(m)
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		m, err := k.obtain(ctx, key)
		if err == nil {
			k.source = mtls.NewSource(m)
			return k, nil
		}
		if errors.Is(err, errFinal) || ctx.Err() != nil {
			return nil, err
		}
		cfg.Logger.Warn("no certificate yet; trying again", zap.Duration("in", pause), zap.Error(err))
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// Source holds the newest certificate.
func (k *Keeper) Source() *mtls.Source { return k.source }

// Run renews until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	pause := firstPause
	leaf := k.source.Get().Certificate.Leaf
	next := renewal(leaf)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Until(next)):
		}
		m, err := k.obtain(ctx, known(k.source.Get()))
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			left := time.Until(leaf.NotAfter)
			log := k.cfg.Logger.Warn
			if left <= 0 {
				log = k.cfg.Logger.Error
			}
			log("the certificate is not renewed; trying again", zap.Duration("in", pause), zap.Duration("ends_in", left), zap.Error(err))
			next = time.Now().Add(pause)
			pause = min(2*pause, lastPause)
			if left > 0 {
				pause = min(pause, max(left/4, firstPause))
			}
		default:
			k.source.Set(m)
			leaf, pause = m.Certificate.Leaf, firstPause
			next = renewal(leaf)
			k.cfg.Logger.Info("certificate is renewed", zap.String("serial", leaf.SerialNumber.Text(16)), zap.Time("ends", leaf.NotAfter))
		}
	}
}

// known returns the key of a certificate that has ended: its holder joins again, and
// the authority knows him by it. As long as it has not ended a new key is better: nil.
func known(m *mtls.Material) *ecdsa.PrivateKey {
	if m == nil || time.Now().Before(m.Certificate.Leaf.NotAfter) {
		return nil
	}
	key, _ := m.Certificate.PrivateKey.(*ecdsa.PrivateKey)
	return key
}

// renewal is when to renew: at random between 50 and 80 % of what a certificate
// lasts, so that not all come at once.
func renewal(c *x509.Certificate) time.Time {
	life := c.NotAfter.Sub(c.NotBefore)
	if life > 4*backdate {
		life -= backdate
	}
	return c.NotAfter.Add(-time.Duration(float64(life) * (0.2 + 0.3*mathrand.Float64())))
}

// obtain asks for a certificate, for a new key unless one is given, and keeps it.
func (k *Keeper) obtain(ctx context.Context, key *ecdsa.PrivateKey) (*mtls.Material, error) {
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, fmt.Errorf("make key: %w", err)
		}
	}
	request, err := newRequest(key, k.cfg.Hosts)
	if err != nil {
		return nil, err
	}
	issued, err := k.cfg.Issuer.Issue(ctx, request, k.source)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	secret := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	m, err := k.material(issued.Certificate, secret, issued.Authorities)
	if err != nil {
		return nil, err
	}
	if k.cfg.Path == "" {
		return m, nil
	}
	content := append(append(secret, issued.Certificate...), pem.EncodeToMemory(&pem.Block{Type: authoritiesBlock, Bytes: issued.Authorities})...)
	if err := writeFile(k.cfg.Path, content); err != nil {
		return nil, fmt.Errorf("keep certificate: %w", err)
	}
	return m, nil
}

// authoritiesBlock is the PEM block that holds the authorities, themselves in
// PEM, so that they are not taken for part of the certificate's chain.
const authoritiesBlock = "MUSTER AUTHORITIES"

func (k *Keeper) material(certificate, key, authorities []byte) (*mtls.Material, error) {
	m, err := mtls.NewMaterial(certificate, key, authorities)
	if err != nil {
		return nil, err
	}
	if m.Identity.Role != k.cfg.Identity.Role || m.Identity.Name != k.cfg.Identity.Name {
		return nil, fmt.Errorf("%w: the certificate is that of %s, and this is %s", errFinal, m.Identity, k.cfg.Identity)
	}
	return m, nil
}

func (k *Keeper) load() (*mtls.Material, error) {
	if k.cfg.Path == "" {
		return nil, os.ErrNotExist
	}
	content, err := os.ReadFile(k.cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	var authorities []byte
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == authoritiesBlock {
			authorities = block.Bytes
		}
	}
	m, err := k.material(content, content, authorities)
	if err != nil {
		return nil, fmt.Errorf("read %s (remove it to join anew): %w", k.cfg.Path, err)
	}
	return m, nil
}

// writeFile writes a file that its owner alone can read, as a whole or not at
// all.
func writeFile(path string, content []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	// CreateTemp makes files for their owner alone.
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
