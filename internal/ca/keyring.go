package ca

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

// Keyring is the keys that an authority's secrets may be sealed with. It opens with
// any of them, and what is sealed stays sealed with the key that it was, until it is
// resealed with the first. So the file of each apid may be changed at a time of its
// own.
type Keyring struct {
	path string

	mu   sync.Mutex
	keys []*Key
}

// NewKeyring returns one of keys that never change.
func NewKeyring(keys ...*Key) *Keyring { return &Keyring{keys: keys} }

// LoadKeys reads keys from a file, one in each line. It is read again whenever a key
// is needed, which is seldom.
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

// current returns the keys that there are, the first one first. With an error, for
// the file cannot be read just now, they are those that there were.
func (r *Keyring) current() ([]*Key, error) {
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

// Name names a key to people, without revealing it.
func (k *Key) Name() string {
	sum := sha256.Sum256(append([]byte("muster cluster key "), k[:]...))
	return hex.EncodeToString(sum[:8])
}
