package ca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// A root is replaced in three steps. Each is one commit or many small ones, so that any
// apid may be killed at any moment. First the new root signs. Each of its certificates
// comes with the new root's key signed by the old root (the cross certificate), so that
// those that know only the old root trust it. Then all holders renew, and so learn to trust
// the new root. At the end the old root is dropped.

var (
	// ErrRotating refuses a rotation while another one is in progress.
	ErrRotating = errors.New("a rotation of the root is under way already")
	// ErrNotRotating says that no rotation is in progress.
	ErrNotRotating = errors.New("there is no rotation of the root under way")
)

// Roots are the authority's roots.
type Roots struct {
	Domain string
	// PEM holds the roots that are trusted. The first signs.
	PEM []byte
	// Signing is the digest of the first.
	Signing []byte
	// Rotation is the one in progress, or the last one. It is nil if there was none.
	Rotation *recordv1.RootRotation
	parsed   []*x509.Certificate
}

// Rotating reports whether a rotation is in progress.
func (r *Roots) Rotating() bool { return r.Rotation != nil && r.Rotation.EndedAt == 0 }

// Of returns the digest of the root that signed a certificate, or nil if none did.
func (r *Roots) Of(c *x509.Certificate) []byte {
	for _, root := range r.parsed {
		if c.CheckSignatureFrom(root) == nil {
			return digestOf(root.Raw)
		}
	}
	return nil
}

func digestOf(der []byte) []byte {
	sum := sha256.Sum256(der)
	return sum[:]
}

// Roots returns the newest known roots.
func (a *Authority) Roots(ctx context.Context) (*Roots, error) {
	o, err := a.open(ctx)
	if err != nil {
		return nil, err
	}
	r := &Roots{
		Domain: o.record.Domain, PEM: certificatePEM(o.record.Certificates...),
		Signing: digestOf(o.record.Certificates[0]), Rotation: o.record.Rotation,
	}
	for _, der := range o.record.Certificates {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate of authority: %w", err)
		}
		r.parsed = append(r.parsed, c)
	}
	return r, nil
}

// Rotate makes a new root, which signs from then on.
func (a *Authority) Rotate(ctx context.Context, by string) error {
	now := time.Now()
	err := a.change(ctx, func(o *opened, record *recordv1.Authority) error {
		if r := record.Rotation; r != nil && r.EndedAt == 0 {
			return ErrRotating
		}
		root, key, err := newRoot(record.Domain, now)
		if err != nil {
			return err
		}
		if record.Cross, err = o.signer.cross(root, now); err != nil {
			return err
		}
		record.Certificates = [][]byte{root, record.Certificates[0]}
		record.Rotation = &recordv1.RootRotation{StartedAt: now.UnixMilli(), StartedBy: by}
		o.secrets.Key = key
		return nil
	})
	if err != nil {
		return fmt.Errorf("rotate root: %w", err)
	}
	a.cfg.Logger.Info("new root signs; the old one is trusted until all have renewed", zap.String("by", by))
	return nil
}

// FinishRotation ends the rotation to the root with the given digest. The old root is no
// longer trusted, and there are new join tokens.
func (a *Authority) FinishRotation(ctx context.Context, signing []byte) error {
	err := a.change(ctx, func(o *opened, record *recordv1.Authority) error {
		r := record.Rotation
		if r == nil || r.EndedAt != 0 || !bytes.Equal(digestOf(record.Certificates[0]), signing) {
			return ErrNotRotating
		}
		r.EndedAt = time.Now().UnixMilli()
		record.Certificates = record.Certificates[:1]
		// The holder of the old key could read the present tokens.
		o.secrets.WorkerJoin, o.secrets.ManagerJoin = newSecret(), newSecret()
		return nil
	})
	if err != nil {
		return fmt.Errorf("drop old root: %w", err)
	}
	a.cfg.Logger.Info("old root is no longer trusted", zap.String("root", hex.EncodeToString(signing)))
	return nil
}

// change changes the record and its secrets in one commit.
func (a *Authority) change(ctx context.Context, f func(o *opened, record *recordv1.Authority) error) error {
	if err := a.store.Ready(ctx); err != nil {
		return fmt.Errorf("read authority: %w", err)
	}
	return a.store.Update(ctx, func(tx *store.Tx) error {
		e, ok := a.table.Get(tx, state.ClusterID)
		if !ok {
			return ErrNone
		}
		o, err := a.unseal(e.Value, e.Version)
		if err != nil {
			return err
		}
		record := proto.CloneOf(e.Value)
		if err := f(o, record); err != nil {
			return err
		}
		record.UpdatedAt = time.Now().UnixMilli()
		if err := a.seal(record, o.secrets, o.key); err != nil {
			return err
		}
		a.table.Put(tx, state.ClusterID, record)
		return nil
	})
}

// newRoot makes the certificate and the key of an authority for a trust domain.
func newRoot(domain string, now time.Time) (certificate, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key of authority: %w", err)
	}
	c, err := rootTemplate(domain, now)
	if err != nil {
		return nil, nil, err
	}
	// Its successor's certificate is the one authority that it may sign.
	c.MaxPathLen = 1
	if certificate, err = x509.CreateCertificate(rand.Reader, c, c, k.Public(), k); err != nil {
		return nil, nil, fmt.Errorf("sign certificate of authority: %w", err)
	}
	if key, err = x509.MarshalPKCS8PrivateKey(k); err != nil {
		return nil, nil, fmt.Errorf("encode key of authority: %w", err)
	}
	return certificate, key, nil
}

// cross signs the certificate of the next root's key.
func (s *signer) cross(root []byte, now time.Time) ([]byte, error) {
	next, err := x509.ParseCertificate(root)
	if err != nil {
		return nil, fmt.Errorf("certificate of the new root: %w", err)
	}
	c, err := rootTemplate(next.URIs[0].Host, now)
	if err != nil {
		return nil, err
	}
	c.MaxPathLenZero, c.SubjectKeyId = true, next.SubjectKeyId
	if c.NotAfter.After(s.certificate.NotAfter) {
		c.NotAfter = s.certificate.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, c, s.certificate, next.PublicKey, s.key)
	if err != nil {
		return nil, fmt.Errorf("have the old root vouch for the new one: %w", err)
	}
	return der, nil
}
