package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
)

// Key seals what must not be read from the store. It is never in the store itself.
type Key [32]byte

// ErrSealed says that something was not sealed with this key for this use.
var ErrSealed = errors.New("it was sealed with another key, or was changed since")

// NewKey returns a random key.
func NewKey() *Key {
	k := &Key{}
	// Read never fails since Go 1.24.
	_, _ = rand.Read(k[:])
	return k
}

// MakeKey writes a new key to a file that must not be there yet.
func MakeKey(path string) (*Key, error) {
	k := NewKey()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make cluster key: %w", err)
	}
	_, err = fmt.Fprintln(f, base64.StdEncoding.EncodeToString(k[:]))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("write cluster key: %w", err)
	}
	return k, nil
}

func (k *Key) aead() (cipher.AEAD, error) {
	block, err := aes.NewCipher(k[:])
	if err != nil {
		return nil, fmt.Errorf("key of AES: %w", err)
	}
	a, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("AES-GCM: %w", err)
	}
	return a, nil
}

// Seal encrypts something for one use, which Open must name too.
func (k *Key) Seal(use string, plain []byte) ([]byte, error) {
	a, err := k.aead()
	if err != nil {
		return nil, err
	}
	return a.Seal(nil, nil, plain, []byte(use)), nil
}

// OpenWith decrypts with whichever key something was sealed with for a use, and returns that
// key.
func OpenWith(keys []*Key, use string, sealed []byte) (plain []byte, with *Key, err error) {
	err = ErrSealed
	for _, k := range keys {
		if plain, err = k.Open(use, sealed); err == nil {
			return plain, k, nil
		}
	}
	return nil, nil, err
}

// Open decrypts what was sealed for a use.
func (k *Key) Open(use string, sealed []byte) ([]byte, error) {
	a, err := k.aead()
	if err != nil {
		return nil, err
	}
	plain, err := a.Open(nil, nil, sealed, []byte(use))
	if err != nil {
		return nil, ErrSealed
	}
	return plain, nil
}
