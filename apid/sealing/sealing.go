// Package sealing decides with which of the cluster's keys apid seals secrets, stacks and
// values in task specs, and seals them again when an operator replaces the key.
//
// The store says which key that is (table "sealing"), and not the order of an apid's file:
// the files of apids and dispatchers change at different times, and all must be able to
// open what any apid seals.
package sealing

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// How many records one transaction seals again. A stack's may have 60 KB.
const secretBatch, stackBatch, specBatch = 64, 4, 64

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

// OpenStack returns the content of a revision of a stack.
func (s *Sealer) OpenStack(id string, r *recordv1.StackRevision, sealed []byte) ([]byte, error) {
	content, err := s.keys.Open(r.GetEnvelope(), seal.StackUse(id), sealed)
	if err != nil {
		return nil, fmt.Errorf("open revision %d of stack %s: %w", r.GetNumber(), id, err)
	}
	return content, nil
}

// errNoKey answers where apid has no key.
func errNoKey() error {
	return status.Error(codes.FailedPrecondition,
		"this apid has no key to seal secrets and stacks with: start every apid and every dispatcherd with --cluster-key-file (`muster init` creates the file)")
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
		return nil, status.Errorf(codes.FailedPrecondition, "secrets and stacks are sealed with cluster key %s, which this apid does not have: add it to its --cluster-key-file", name)
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
		e, ok := s.Tables.Sealing.Get(tx, state.ClusterID)
		if ok && e.Value.KeyName == name {
			return backend.ErrNoChange
		}
		next := &recordv1.Sealing{KeyName: name, UpdatedAt: time.Now().UnixMilli()}
		if e.Value.GetStandInEnvelope() != nil {
			var err error
			next.StandInKey = e.Value.StandInKey
			if next.StandInEnvelope, err = s.keys.Rewrap(e.Value.StandInEnvelope, seal.StandInUse, key); err != nil {
				return status.Errorf(codes.FailedPrecondition, "the key of the values of task specs: %v", err)
			}
		}
		s.Tables.Sealing.Put(tx, state.ClusterID, next)
		return nil
	})
	if err != nil {
		return err
	}
	// What others have sealed before that shows in the snapshot from here on.
	if err := s.Sync(ctx, s.Tables.Secrets, s.Tables.Stacks, s.Tables.Specs); err != nil {
		return err
	}
	if err := resealTable(ctx, s, secretRecords(s.Tables), key); err != nil {
		return err
	}
	if err := resealTable(ctx, s, stackRecords(s.Tables), key); err != nil {
		return err
	}
	return resealTable(ctx, s, specRecords(s.Tables), key)
}

// records are those of a table that hold envelopes.
type records[R proto.Message] struct {
	table *store.Table[R]
	kind  string
	name  func(record R) string
	use   func(id string) string
	// envelopes returns pointers into a record.
	envelopes func(record R) []**recordv1.Envelope
	// batch is how many records one transaction seals again.
	batch int
}

func secretRecords(t *state.Tables) records[*recordv1.Secret] {
	return records[*recordv1.Secret]{
		t.Secrets, "secret", func(r *recordv1.Secret) string { return r.GetSpec().GetName() }, seal.SecretUse,
		func(r *recordv1.Secret) []**recordv1.Envelope { return []**recordv1.Envelope{&r.Envelope} },
		secretBatch,
	}
}

func stackRecords(t *state.Tables) records[*recordv1.Stack] {
	return records[*recordv1.Stack]{
		t.Stacks, "stack", (*recordv1.Stack).GetName, seal.StackUse,
		func(r *recordv1.Stack) []**recordv1.Envelope {
			all := make([]**recordv1.Envelope, 0, len(r.Revisions))
			for _, revision := range r.Revisions {
				all = append(all, &revision.Envelope)
			}
			return all
		},
		stackBatch,
	}
}

func specRecords(t *state.Tables) records[*recordv1.Spec] {
	return records[*recordv1.Spec]{
		t.Specs, "task spec", func(r *recordv1.Spec) string { return r.GetTask().GetContainer().GetImage() }, seal.SpecUse,
		func(r *recordv1.Spec) []**recordv1.Envelope {
			if r.GetEnvelope() == nil {
				return nil
			}
			return []**recordv1.Envelope{&r.Envelope}
		},
		specBatch,
	}
}

// sealedBy returns the names of the keys that seal a record.
func (t records[R]) sealedBy(record R) map[string]bool {
	names := map[string]bool{}
	for _, e := range t.envelopes(record) {
		names[(*e).GetKeyName()] = true
	}
	return names
}

// sealedOnlyBy reports whether no other key seals a record.
func (t records[R]) sealedOnlyBy(record R, name string) bool {
	for other := range t.sealedBy(record) {
		if other != name {
			return false
		}
	}
	return true
}

// resealTable seals the data keys of all records of a table with a key.
func resealTable[R proto.Message](ctx context.Context, s *Sealer, t records[R], key *seal.Key) error {
	var others []string
	for e := range t.table.Scan(s.Snapshot(), "") {
		if !t.sealedOnlyBy(e.Value, key.Name()) {
			others = append(others, e.Key)
		}
	}
	for batch := t.batch; len(others) > 0; {
		ids := others[:min(len(others), batch)]
		err := s.Update(ctx, func(tx *store.Tx) error { return resealRecords(tx, s.keys, t, ids, key) })
		if errors.Is(err, kv.ErrTooLarge) && len(ids) > 1 {
			batch = len(ids) / 2
			continue
		}
		if err != nil {
			return err
		}
		others = others[len(ids):]
	}
	return nil
}

// resealRecords does it with some records. Those that are gone by now, or were sealed with the
// key since, are left alone.
func resealRecords[R proto.Message](tx *store.Tx, keys *seal.Keyring, t records[R], ids []string, key *seal.Key) error {
	changed := false
	for _, id := range ids {
		e, ok := t.table.Get(tx, id)
		if !ok || t.sealedOnlyBy(e.Value, key.Name()) {
			continue
		}
		next := proto.CloneOf(e.Value)
		for _, envelope := range t.envelopes(next) {
			rewrapped, err := keys.Rewrap(*envelope, t.use(id), key)
			if err != nil {
				return status.Error(codes.FailedPrecondition, fmt.Sprintf("%s %q: %v", t.kind, t.name(e.Value), err))
			}
			*envelope = rewrapped
		}
		t.table.Put(tx, id, next)
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
	now := s.Snapshot()
	count(counts, now, secretRecords(s.Tables))
	count(counts, now, stackRecords(s.Tables))
	count(counts, now, specRecords(s.Tables))
	if e, _ := s.Tables.Sealing.Get(now, state.ClusterID); e.Value.GetStandInEnvelope() != nil {
		counts[e.Value.StandInEnvelope.KeyName]++
	}
	return counts
}

func count[R proto.Message](counts map[string]uint64, r store.Reader, t records[R]) {
	for e := range t.table.Scan(r, "") {
		for name := range t.sealedBy(e.Value) {
			counts[name]++
		}
	}
}

// DispatchersOpen reports whether there is something sealed that dispatchers open: a secret,
// or values of task specs.
func (s *Sealer) DispatchersOpen() bool {
	if e, _ := s.Tables.Sealing.Get(s.Snapshot(), state.ClusterID); e.Value.GetStandInEnvelope() != nil {
		return true
	}
	for range s.Tables.Secrets.Scan(s.Snapshot(), "") {
		return true
	}
	return false
}
