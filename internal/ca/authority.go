// Package ca is the cluster's own certificate authority. It creates the authority, keeps it
// in the store with its key sealed, and signs certificates for daemons, workers and people.
// It owns the table authorities, which only apid writes. It also holds the client side: how
// daemons and workers get their certificates and renew them.
package ca

import (
	"context"
	"crypto"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// sealUse is the purpose that the secrets are sealed for. The trust domain follows it.
const sealUse = "muster.record.v1.AuthoritySecrets "

// DefaultLifetime is the lifetime of certificates.
const DefaultLifetime = 90 * 24 * time.Hour

// DefaultCheckInterval makes ten thousand workers ask 80 times a second.
const DefaultCheckInterval = 2 * time.Minute

// MinLifetime is the shortest lifetime that leaves time to renew.
const MinLifetime = 10 * time.Second

var (
	// ErrNone says that the cluster has no authority yet.
	ErrNone = errors.New("the cluster has no authority yet: `muster init` makes it")
	// ErrToken is the error for a join token that is not valid.
	ErrToken = errors.New("the join token is not that of this cluster, or was replaced; `muster cluster join-token` shows the current one")
)

// Config says where the authority is stored.
type Config struct {
	KV     kv.KV
	Prefix string
	// Keys seal the authority's secrets.
	Keys *seal.Keyring
	// Lifetime is the lifetime of certificates.
	Lifetime time.Duration
	// CheckInterval is how often holders of certificates ask for the authority's roots. 0
	// means DefaultCheckInterval.
	CheckInterval time.Duration
	// AllowedHosts are the hosts that joining daemons may have in their certificates.
	AllowedHosts AllowedHosts
	Logger       *zap.Logger
}

// Authority signs certificates. Several may be open on one store.
type Authority struct {
	cfg   Config
	table *store.Table[*recordv1.Authority]
	store *store.Store

	mu sync.Mutex
	// opened is the newest record, opened.
	opened *opened
}

// opened is a record with its secrets decrypted.
type opened struct {
	version uint64
	record  *recordv1.Authority
	secrets *recordv1.AuthoritySecrets
	signer  *signer
	// key is the name of the key that sealed the secrets.
	key *seal.Key
}

// New returns an authority that does nothing until Run is called.
func New(cfg Config) (*Authority, error) {
	if cfg.Keys == nil {
		return nil, errors.New("authority: the key is missing")
	}
	if cfg.Lifetime < MinLifetime {
		return nil, fmt.Errorf("authority: certificates that last for %v cannot be renewed in time: want at least %v", cfg.Lifetime, MinLifetime)
	}
	if cfg.CheckInterval == 0 {
		cfg.CheckInterval = DefaultCheckInterval
	}
	a := &Authority{cfg: cfg, table: state.NewTables().Authorities}
	var err error
	if a.store, err = store.New(store.Options{KV: cfg.KV, Prefix: cfg.Prefix, Logger: cfg.Logger}, a.table); err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	return a, nil
}

// Run follows the store until ctx ends. All other methods wait for it.
func (a *Authority) Run(ctx context.Context) error { return a.store.Run(ctx) }

// Init creates the authority if there is none, and reports whether it did.
func (a *Authority) Init(ctx context.Context) (made bool, err error) {
	if err := a.store.Ready(ctx); err != nil {
		return false, fmt.Errorf("read authority: %w", err)
	}
	now := time.Now()
	domain := state.NewID()
	certificate, key, err := newRoot(domain, now)
	if err != nil {
		return false, err
	}
	record := &recordv1.Authority{Domain: domain, Certificates: [][]byte{certificate}, CreatedAt: now.UnixMilli(), UpdatedAt: now.UnixMilli()}
	if err := a.seal(record, &recordv1.AuthoritySecrets{Key: key, WorkerJoin: newSecret(), ManagerJoin: newSecret()}, a.keys()[0]); err != nil {
		return false, err
	}
	err = a.store.Update(ctx, func(tx *store.Tx) error {
		_, there := a.table.Get(tx, state.ClusterID)
		if made = !there; made {
			a.table.Put(tx, state.ClusterID, record)
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("keep authority: %w", err)
	}
	_, err = a.open(ctx)
	return made, err
}

func (a *Authority) seal(record *recordv1.Authority, secrets *recordv1.AuthoritySecrets, key *seal.Key) error {
	plain, err := proto.Marshal(secrets)
	if err != nil {
		return fmt.Errorf("encode secrets of authority: %w", err)
	}
	record.Sealed, err = key.Seal(sealUse+record.Domain, plain)
	return err
}

func (a *Authority) unseal(record *recordv1.Authority, version uint64) (*opened, error) {
	plain, key, err := seal.OpenWith(a.keys(), sealUse+record.Domain, record.Sealed)
	if err != nil {
		return nil, fmt.Errorf("open the authority's secrets with the cluster key: %w", err)
	}
	o := &opened{version: version, record: record, secrets: &recordv1.AuthoritySecrets{}, signer: &signer{}, key: key}
	if err := proto.Unmarshal(plain, o.secrets); err != nil {
		return nil, fmt.Errorf("decode secrets of authority: %w", err)
	}
	if len(record.Certificates) == 0 {
		return nil, ErrNone
	}
	if o.signer.certificate, err = x509.ParseCertificate(record.Certificates[0]); err != nil {
		return nil, fmt.Errorf("certificate of authority: %w", err)
	}
	signing, err := x509.ParsePKCS8PrivateKey(o.secrets.Key)
	if err != nil {
		return nil, fmt.Errorf("key of authority: %w", err)
	}
	var ok bool
	if o.signer.key, ok = signing.(crypto.Signer); !ok {
		return nil, errors.New("key of authority: it cannot sign")
	}
	return o, nil
}

// open returns the newest authority.
func (a *Authority) open(ctx context.Context) (*opened, error) {
	if err := a.store.Ready(ctx); err != nil {
		return nil, fmt.Errorf("read authority: %w", err)
	}
	e, ok := a.table.Get(a.store.Snapshot(), state.ClusterID)
	if !ok {
		return nil, ErrNone
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	// A version number may occur again after an older state of the store was restored.
	if a.opened != nil && a.opened.version == e.Version && proto.Equal(a.opened.record, e.Value) {
		return a.opened, nil
	}
	o, err := a.unseal(e.Value, e.Version)
	if err != nil {
		return nil, err
	}
	a.opened = o
	return o, nil
}

// Await waits until the authority exists.
func (a *Authority) Await(ctx context.Context) error {
	for told := false; ; {
		// Taken before the check, so that a change during the check ends the wait.
		seen := a.store.Snapshot()
		_, err := a.open(ctx)
		if !errors.Is(err, ErrNone) {
			return err
		}
		if !told {
			told = true
			a.cfg.Logger.Warn("waiting for the cluster's authority; create it with `muster init`")
		}
		if _, err := a.store.Wait(ctx, seen, a.table); err != nil {
			return fmt.Errorf("wait for authority: %w", err)
		}
	}
}

// Certificates returns the authority's own certificates, in PEM.
func (a *Authority) Certificates(ctx context.Context) ([]byte, error) {
	o, err := a.open(ctx)
	if err != nil {
		return nil, err
	}
	return certificatePEM(o.record.Certificates...), nil
}

// Domain returns the trust domain.
func (a *Authority) Domain(ctx context.Context) (string, error) {
	o, err := a.open(ctx)
	if err != nil {
		return "", err
	}
	return o.record.Domain, nil
}

// Issued is a certificate with the roots that verify it.
type Issued struct {
	// Certificate and Authorities are in PEM. The certificate includes the cross
	// certificate of its signer, if one is needed.
	Certificate, Authorities []byte
	Ends                     time.Time
}

// Issue signs a certificate for an identity, whose domain it sets. The certificate names
// those hosts of the request that AllowedHosts allows for the identity's role. A lifetime
// of 0, or one that is too long, becomes the configured one.
func (a *Authority) Issue(ctx context.Context, id auth.Identity, r *Request, lifetime time.Duration) (*Issued, error) {
	granted, refused := a.cfg.AllowedHosts.split(id.Role, r.hosts)
	if len(refused) > 0 && auth.IsManager(id.Role) {
		a.cfg.Logger.Info("host names left out of certificate", zap.Stringer("identity", id), zap.Int("count", len(refused)), zap.Strings("first", refused[:min(len(refused), 8)]))
	}
	return a.issue(ctx, order{identity: id, public: r.public, hosts: granted, lifetime: lifetime})
}

// issueToSelf signs for the apid that this authority is part of. The hosts come from that
// apid's own settings, which its administrator has chosen.
func (a *Authority) issueToSelf(ctx context.Context, r *Request) (*Issued, error) {
	if err := r.CheckHosts(); err != nil {
		return nil, err
	}
	hosts := without(r.hosts, []string{OwnHost(authv1.Role_APID)})
	return a.issue(ctx, order{identity: auth.Identity{Role: authv1.Role_APID, Name: "apid"}, public: r.public, hosts: hosts})
}

func (a *Authority) issue(ctx context.Context, what order) (*Issued, error) {
	o, err := a.open(ctx)
	if err != nil {
		return nil, err
	}
	what.identity.Domain = o.record.Domain
	if what.lifetime <= 0 || what.lifetime > a.cfg.Lifetime {
		what.lifetime = a.cfg.Lifetime
	}
	c, err := o.signer.sign(what, time.Now())
	if err != nil {
		return nil, err
	}
	a.cfg.Logger.Info("certificate is issued", zap.Stringer("identity", what.identity), zap.Strings("hosts", hostsOf(c)), zap.String("serial", c.SerialNumber.Text(16)), zap.Time("ends", c.NotAfter))
	chain := [][]byte{c.Raw}
	if len(o.record.Cross) > 0 {
		chain = append(chain, o.record.Cross)
	}
	return &Issued{Certificate: certificatePEM(chain...), Authorities: certificatePEM(o.record.Certificates...), Ends: c.NotAfter}, nil
}

// CheckInterval returns how often holders of certificates must ask for the authority's
// roots.
func (a *Authority) CheckInterval() time.Duration { return a.cfg.CheckInterval }

// Lifetime returns the longest lifetime of a certificate.
func (a *Authority) Lifetime() time.Duration { return a.cfg.Lifetime }

// JoinTokens are the current join tokens.
type JoinTokens struct{ Worker, Manager string }

// JoinTokens returns the current join tokens.
func (a *Authority) JoinTokens(ctx context.Context) (JoinTokens, error) {
	o, err := a.open(ctx)
	if err != nil {
		return JoinTokens{}, err
	}
	return JoinTokens{joinToken(o.record.Certificates[0], o.secrets.WorkerJoin), joinToken(o.record.Certificates[0], o.secrets.ManagerJoin)}, nil
}

// CheckJoin reports whether a token admits a manager daemon or, if manager is false, a
// worker. It reads the store itself, so a token that another apid replaced a moment ago is
// refused.
func (a *Authority) CheckJoin(ctx context.Context, token string, manager bool) error {
	_, secret, err := parseJoinToken(token)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrToken, err)
	}
	if err := a.store.Ready(ctx); err != nil {
		return fmt.Errorf("read authority: %w", err)
	}
	if err := a.store.Sync(ctx, a.table); err != nil {
		return fmt.Errorf("read authority: %w", err)
	}
	o, err := a.open(ctx)
	if err != nil {
		return err
	}
	want := o.secrets.WorkerJoin
	if manager {
		want = o.secrets.ManagerJoin
	}
	if subtle.ConstantTimeCompare([]byte(want), []byte(secret)) != 1 {
		return ErrToken
	}
	return nil
}

// RotateJoin replaces a join token and returns the new one.
func (a *Authority) RotateJoin(ctx context.Context, manager bool) (string, error) {
	secret := newSecret()
	var token string
	err := a.change(ctx, func(o *opened, record *recordv1.Authority) error {
		if manager {
			o.secrets.ManagerJoin = secret
		} else {
			o.secrets.WorkerJoin = secret
		}
		token = joinToken(record.Certificates[0], secret)
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("replace join token: %w", err)
	}
	return token, nil
}
