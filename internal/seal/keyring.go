// Package seal encrypts what must not be read from the store with the cluster's keys,
// which only apid and dispatcherd have.
//
// Data of a record is enveloped: it is sealed with a data key of its own, and the data key
// with a key of the cluster. When the cluster's key is replaced, only the data keys are
// sealed again.
package seal

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
)

// maxKeys bounds what a file holds: an old and a new key, and some room.
const maxKeys = 8

// Keyring holds the cluster's keys. It opens with any of them. Files of different daemons
// may change at different times, because what is sealed stays sealed with the same key until
// an operator reseals it with the first one.
type Keyring struct {
	path string

	mu   sync.Mutex
	keys []*Key
}

// NewKeyring returns a ring of keys that never change.
func NewKeyring(keys ...*Key) *Keyring { return &Keyring{keys: keys} }

// LoadKeys reads keys from a file, one in each line. The file is read again whenever a key
// is needed.
func LoadKeys(path string) (*Keyring, error) {
	r := &Keyring{path: path}
	keys, err := r.read()
	if err != nil {
		return nil, err
	}
	r.keys = keys
	return r, nil
}

// MakeKeys writes one new key to a file that must not be there yet.
func MakeKeys(path string) (*Keyring, error) {
	k, err := MakeKey(path)
	if err != nil {
		return nil, err
	}
	return &Keyring{path: path, keys: []*Key{k}}, nil
}

func (r *Keyring) read() ([]*Key, error) {
	text, err := os.ReadFile(r.path)
	if err != nil {
		return nil, fmt.Errorf("read cluster key: %w", err)
	}
	var keys []*Key
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		b, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(b) != len(Key{}) {
			return nil, fmt.Errorf("read cluster key: %s does not hold %d bytes in base64 in each line", r.path, len(Key{}))
		}
		keys = append(keys, (*Key)(b))
	}
	if len(keys) == 0 || len(keys) > maxKeys {
		return nil, fmt.Errorf("read cluster key: %s holds %d keys, and not 1 to %d", r.path, len(keys), maxKeys)
	}
	return keys, nil
}

// Keys returns the keys that there are, in their order. If the file cannot be read now, they
// are those of the last time, and the error says why.
func (r *Keyring) Keys() ([]*Key, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.path == "" {
		return r.keys, nil
	}
	keys, err := r.read()
	if err == nil {
		r.keys = keys
	}
	return slices.Clone(r.keys), err
}

// Names returns the names of the keys, in their order. A nil ring has none.
func (r *Keyring) Names() []string {
	if r == nil {
		return nil
	}
	keys, _ := r.Keys()
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.Name()
	}
	return names
}

// Find returns the key with a name; nil if the ring lacks it.
func (r *Keyring) Find(name string) *Key {
	if r == nil {
		return nil
	}
	keys, _ := r.Keys()
	for _, k := range keys {
		if k.Name() == name {
			return k
		}
	}
	return nil
}

// known returns the key with a name if it was read before. It saves reading the file for
// each record that is opened.
func (r *Keyring) known(name string) *Key {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.keys {
		if k.Name() == name {
			return k
		}
	}
	return nil
}

// Name identifies a key without revealing it.
func (k *Key) Name() string {
	sum := sha256.Sum256(append([]byte("muster cluster key "), k[:]...))
	return hex.EncodeToString(sum[:8])
}
