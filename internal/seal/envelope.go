package seal

import (
	"fmt"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
)

// dataKeyUse is added to the use of data for the use of its data key.
const dataKeyUse = " data key"

// Envelop seals data for one use with a new data key, and that one with a key of the
// cluster.
func (k *Key) Envelop(use string, plain []byte) (*recordv1.Envelope, []byte, error) {
	data := NewKey()
	sealed, err := data.Seal(use, plain)
	if err != nil {
		return nil, nil, err
	}
	e, err := k.envelope(use, data)
	return e, sealed, err
}

func (k *Key) envelope(use string, data *Key) (*recordv1.Envelope, error) {
	sealed, err := k.Seal(use+dataKeyUse, data[:])
	if err != nil {
		return nil, err
	}
	return &recordv1.Envelope{KeyName: k.Name(), DataKey: sealed}, nil
}

// Open returns the data that was enveloped for a use.
func (r *Keyring) Open(e *recordv1.Envelope, use string, sealed []byte) ([]byte, error) {
	data, err := r.dataKey(e, use)
	if err != nil {
		return nil, err
	}
	return data.Open(use, sealed)
}

// Rewrap returns an envelope of the same data key, sealed with another key of the cluster.
func (r *Keyring) Rewrap(e *recordv1.Envelope, use string, with *Key) (*recordv1.Envelope, error) {
	data, err := r.dataKey(e, use)
	if err != nil {
		return nil, err
	}
	return with.envelope(use, data)
}

// NoKeyError says that data is sealed with a key that is missing here.
type NoKeyError struct {
	// Name is that of the key.
	Name string
}

func (e *NoKeyError) Error() string {
	return fmt.Sprintf("it is sealed with cluster key %s, which is missing here: add that key to --cluster-key-file", e.Name)
}

func (r *Keyring) dataKey(e *recordv1.Envelope, use string) (*Key, error) {
	key := r.known(e.GetKeyName())
	if key == nil {
		key = r.Find(e.GetKeyName())
	}
	if key == nil {
		return nil, &NoKeyError{Name: e.GetKeyName()}
	}
	b, err := key.Open(use+dataKeyUse, e.GetDataKey())
	if err != nil {
		return nil, err
	}
	return keyOf(b)
}

// OpenKey returns a key that was enveloped for a use.
func (r *Keyring) OpenKey(e *recordv1.Envelope, use string, sealed []byte) (*Key, error) {
	b, err := r.Open(e, use, sealed)
	if err != nil {
		return nil, err
	}
	return keyOf(b)
}

func keyOf(b []byte) (*Key, error) {
	if len(b) != len(Key{}) {
		return nil, fmt.Errorf("key has %d bytes, want %d", len(b), len(Key{}))
	}
	return (*Key)(b), nil
}

// SecretUse returns what the data of a secret is sealed for, so that it opens as the data
// of no other secret.
func SecretUse(id string) string { return "muster.record.v1.Secret " + id }

// StackUse returns what the content of a revision of a stack is sealed for.
func StackUse(id string) string { return "muster.record.v1.Stack " + id }

// OpenSecret returns the data of a secret. Sealed is what lies under the record's digest in
// table "sealedblobs" (state.Tables.ReadSealed).
func (r *Keyring) OpenSecret(id string, record *recordv1.Secret, sealed []byte) ([]byte, error) {
	data, err := r.Open(record.GetEnvelope(), SecretUse(id), sealed)
	if err != nil {
		return nil, fmt.Errorf("open data of secret %s: %w", id, err)
	}
	return data, nil
}
