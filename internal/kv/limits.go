package kv

import (
	"errors"
	"fmt"
)

// MaxKey is the maximum length of a key. Keys are paths: segments of letters, digits and
// "-_." with single slashes between them, and no leading slash.
const MaxKey = 200

// Limits bound one transaction.
type Limits struct {
	// Ops is the maximum number of operations.
	Ops int
	// Bytes is the maximum total length of all values, in bytes. It leaves room for the
	// encoding on the wire.
	Bytes int
}

// Check returns an error if ops exceed the limits (ErrTooLarge) or are malformed. Every
// implementation calls it before a transaction.
func (l Limits) Check(ops []Op) error {
	if len(ops) > l.Ops {
		return fmt.Errorf("transaction of %d operations, of %d allowed: %w", len(ops), l.Ops, ErrTooLarge)
	}
	size := 0
	for i, op := range ops {
		if op.Verb < Get || op.Verb > CheckIndex {
			return fmt.Errorf("operation %d: unknown verb %d", i, op.Verb)
		}
		if err := CheckKey(op.Key); err != nil {
			return fmt.Errorf("operation %d: %w", i, err)
		}
		size += len(op.Value)
	}
	if size > l.Bytes {
		return fmt.Errorf("transaction of %d bytes, of %d allowed: %w", size, l.Bytes, ErrTooLarge)
	}
	return nil
}

// CheckKey returns an error if key is not a valid key.
func CheckKey(key string) error {
	switch {
	case key == "":
		return errors.New("the key is empty")
	case key[0] == '/':
		return fmt.Errorf("key %q starts with a slash", key)
	case len(key) > MaxKey:
		return fmt.Errorf("key %q is %d bytes long, of %d allowed: %w", key[:32]+"...", len(key), MaxKey, ErrTooLarge)
	}
	return nil
}
