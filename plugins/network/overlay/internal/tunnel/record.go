//go:build linux

package tunnel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// record is what a node keeps on disk. It holds private keys, and only root may read it.
type record struct {
	// Port is the first of the two UDP ports of the node.
	Port uint16 `json:"port"`
	// Keys are the node's keys, the one to come last. There are two while one replaces the
	// other.
	Keys []*key `json:"keys"`
}

// key is one key of the node, with the WireGuard device that uses it.
type key struct {
	// Slot is 0 or 1: two keys in a row have different devices and ports.
	Slot    int        `json:"slot"`
	Private privateKey `json:"private"`
	Made    time.Time  `json:"made"`
	// Version is that of the program that runs the device.
	Version string `json:"version"`
}

// privateKey is a key that prints nothing of itself.
type privateKey struct{ wgtypes.Key }

// String returns no part of the key.
func (privateKey) String() string { return "private key" }

// GoString returns no part of the key.
func (privateKey) GoString() string { return "private key" }

// MarshalText returns the key for the record.
func (k privateKey) MarshalText() ([]byte, error) { return []byte(k.Key.String()), nil }

// UnmarshalText reads a key of the record.
func (k *privateKey) UnmarshalText(text []byte) (err error) {
	k.Key, err = wgtypes.ParseKey(string(text))
	return err
}

// recordName is the name of the file with the keys.
const recordName = "encryption.json"

// read returns the record of an earlier process, or an empty one.
func read(dir string) (*record, error) {
	text, err := os.ReadFile(filepath.Join(dir, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return &record{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read keys for encrypted networks: %w", err)
	}
	r := &record{}
	err = json.Unmarshal(text, r)
	if err == nil {
		err = r.check()
	}
	if err != nil {
		// The text of the error could quote the file.
		return nil, fmt.Errorf("read keys for encrypted networks: %s is damaged: remove it, and the node makes a new key", filepath.Join(dir, recordName))
	}
	return r, nil
}

// check reports whether this program can have written the record.
func (r *record) check() error {
	if r.Port == 0 || r.Port == math.MaxUint16 || len(r.Keys) == 0 || len(r.Keys) > 2 {
		return errors.New("want a port, and one key or two")
	}
	slots, keys := make(map[int]bool), make(map[wgtypes.Key]bool)
	for _, k := range r.Keys {
		if k == nil || k.Slot < 0 || k.Slot > 1 || slots[k.Slot] || k.Private.Key == (wgtypes.Key{}) || keys[k.Private.Key] {
			return errors.New("want different keys, in the slots 0 and 1")
		}
		slots[k.Slot], keys[k.Private.Key] = true, true
	}
	return nil
}

// write keeps the record. A process that ends meanwhile, or a loss of power, leaves the old
// one or the new one.
func (r *record) write(dir string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("keep keys for encrypted networks: %w", err)
		}
	}()
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// Such a file is readable by its owner only.
	file, err := os.CreateTemp(dir, recordName+".*")
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), filepath.Join(dir, recordName))
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
