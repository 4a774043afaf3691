// Package sealing decides with which of the cluster's keys apid seals secrets, and seals
// them again when an operator replaces the key.
//
// The store says which key that is (table "sealing"), and not the order of an apid's file:
// the files of apids and dispatchers change at different times, and all must be able to
// open what any apid seals.
package sealing

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// batch is how many records one transaction seals again.
const batch = 64

// Sealer seals with the cluster's keys.
type Sealer struct {
	*backend.Backend
	keys *seal.Keyring
	// first names the key that seals before any secret has been created.
	first func(ctx context.Context) (string, error)
}

// New returns a sealer. Keys is nil if apid has none. The key of the cluster's own
// authority, which authority returns, seals from the start; nil if there is no authority.
func New(b *backend.Backend, keys *seal.Keyring, authority func(ctx context.Context) (string, error)) *Sealer {
	if authority == nil {
		authority = func(context.Context) (string, error) { return keys.Names()[0], nil }
	}
	return &Sealer{b, keys, authority}
}

// KeyNames returns the names of the keys that apid has. The first is what Reseal seals with.
func (s *Sealer) KeyNames() []string { return s.keys.Names() }

// Open returns the data of a secret.
func (s *Sealer) Open(id string, record *recordv1.Secret, sealed []byte) ([]byte, error) {
	return s.keys.OpenSecret(id, record, sealed)
}

// errNoKey answers where apid has no key.
func errNoKey() error {
	return status.Error(codes.FailedPrecondition,
		"this apid has no key to seal secrets with: start every apid and every dispatcherd with --cluster-key-file (`muster init` creates the file)")
}

// Current returns the key that seals now.
func (s *Sealer) Current(ctx context.Context, r store.Reader) (*seal.Key, error) {
	if s.keys == nil {
		return nil, errNoKey()
	}
	var name string
	if e, ok := s.Tables.Sealing.Get(r, state.ClusterID); ok {
		name = e.Value.KeyName
	} else {
		var err error
		if name, err = s.first(ctx); err != nil {
			return nil, err
		}
	}
	key := s.keys.Find(name)
	if key == nil {
		return nil, status.Errorf(codes.FailedPrecondition, "secrets are sealed with cluster key %s, which this apid does not have: add it to its --cluster-key-file", name)
	}
	return key, nil
}

// Rewrap returns the envelope with the key that seals in the transaction. The transaction
// and one that makes another key seal cannot both succeed.
func (s *Sealer) Rewrap(ctx context.Context, tx *store.Tx, e *recordv1.Envelope, use string) (*recordv1.Envelope, error) {
	key, err := s.Current(ctx, tx)
	if err != nil || e.KeyName == key.Name() {
		return e, err
	}
	return s.keys.Rewrap(e, use, key)
}

// ErrOtherKey says that the first key is no longer the expected one.
var ErrOtherKey = errors.New("the first key is another one now")

// Reseal makes a key seal from now on, and seals the data keys of all records with it. The
// caller must know that every daemon that opens records has that key.
func (s *Sealer) Reseal(ctx context.Context, name string) error {
	key := s.keys.Find(name)
	if key == nil {
		return ErrOtherKey
	}
	err := s.Update(ctx, func(tx *store.Tx) error {
		if e, ok := s.Tables.Sealing.Get(tx, state.ClusterID); ok && e.Value.KeyName == name {
			return backend.ErrNoChange
		}
		s.Tables.Sealing.Put(tx, state.ClusterID, &recordv1.Sealing{KeyName: name, UpdatedAt: time.Now().UnixMilli()})
		return nil
	})
	if err != nil {
		return err
	}
	// What others have sealed before that shows in the snapshot from here on.
	if err := s.Sync(ctx, s.Tables.Secrets); err != nil {
		return err
	}
	var others []string
	for e := range s.Tables.Secrets.Scan(s.Snapshot(), "") {
		if e.Value.Envelope.GetKeyName() != name {
			others = append(others, e.Key)
		}
	}
	for ids := range slices.Chunk(others, batch) {
		if err := s.Update(ctx, func(tx *store.Tx) error { return s.reseal(tx, ids, key) }); err != nil {
			return err
		}
	}
	return nil
}

// reseal seals the data keys of some secrets with a key. Secrets that are gone by now, or
// were sealed with it since, are left alone.
func (s *Sealer) reseal(tx *store.Tx, ids []string, key *seal.Key) error {
	changed := false
	for _, id := range ids {
		e, ok := s.Tables.Secrets.Get(tx, id)
		if !ok || e.Value.Envelope.GetKeyName() == key.Name() {
			continue
		}
		envelope, err := s.keys.Rewrap(e.Value.Envelope, seal.SecretUse(id), key)
		if err != nil {
			return status.Error(codes.FailedPrecondition, fmt.Sprintf("secret %q: %v", e.Value.GetSpec().GetName(), err))
		}
		next := proto.CloneOf(e.Value)
		next.Envelope = envelope
		s.Tables.Secrets.Put(tx, id, next)
		changed = true
	}
	if !changed {
		return backend.ErrNoChange
	}
	return nil
}

// Count returns how many records each key seals.
func (s *Sealer) Count() map[string]uint64 {
	counts := map[string]uint64{}
	for e := range s.Tables.Secrets.Scan(s.Snapshot(), "") {
		counts[e.Value.Envelope.GetKeyName()]++
	}
	return counts
}
