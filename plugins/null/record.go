package null

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/musterhq/muster/plugins/sdk"
)

// recordVersion is the version of a record's format.
const recordVersion = 1

// record is the whole state of a null task: its script, and what it has done.
type record struct {
	Version int       `json:"v"`
	ID      string    `json:"id"`
	NodeID  string    `json:"node"`
	State   sdk.State `json:"state"`
	Script  Payload   `json:"script"`
	// Failures counts the failures that the script has caused.
	Failures uint32 `json:"failures,omitempty"`
	// Crashed is true once the process has ended because of the script.
	Crashed bool      `json:"crashed,omitempty"`
	Started time.Time `json:"started,omitzero"`
	// Ends is when a running task will end by itself; zero means never.
	Ends time.Time `json:"ends,omitzero"`
	// Ended is when it did end.
	Ended time.Time `json:"ended,omitzero"`
	// Namespace is the path that represents the task's network namespace, if Prepare made
	// one.
	Namespace string `json:"namespace,omitempty"`
	ExitCode  int32  `json:"exitCode,omitempty"`
}

// files stores records, one file each. The zero value stores nothing.
type files struct{ dir string }

const (
	recordSuffix     = ".json"
	unfinishedSuffix = recordSuffix + ".new"
)

// load returns the records that an earlier process stored.
func (f files) load() ([]record, error) {
	if f.dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the state directory: %w", err)
	}
	var records []record
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), unfinishedSuffix) {
			// A process was killed while it wrote. The unfinished record does not count.
			if err := os.Remove(filepath.Join(f.dir, entry.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("remove an unfinished record: %w", err)
			}
			continue
		}
		if !strings.HasSuffix(entry.Name(), recordSuffix) {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(f.dir, entry.Name()))
		if err != nil {
			return nil, fmt.Errorf("read a record: %w", err)
		}
		var r record
		if err := json.Unmarshal(raw, &r); err != nil {
			return nil, fmt.Errorf("read record %s: %w", entry.Name(), err)
		}
		if r.Version != recordVersion {
			return nil, fmt.Errorf("read record %s: its version is %d, and this executor knows %d", entry.Name(), r.Version, recordVersion)
		}
		records = append(records, r)
	}
	return records, nil
}

// save writes a record so that a reader sees the old one or the new one. It survives the
// death of this process but not of the machine, which no null task survives.
func (f files) save(r *record) error {
	if f.dir == "" {
		return nil
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode a record: %w", err)
	}
	unfinished := filepath.Join(f.dir, r.ID+unfinishedSuffix)
	err = os.WriteFile(unfinished, raw, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(f.dir, 0o700); err != nil {
			return fmt.Errorf("make the state directory: %w", err)
		}
		err = os.WriteFile(unfinished, raw, 0o600)
	}
	if err == nil {
		err = os.Rename(unfinished, f.path(r.ID))
	}
	if err != nil {
		// On a full disk the file exists with nothing or a part in it. If it cannot be
		// removed now, the next start removes it.
		_ = os.Remove(unfinished)
		return fmt.Errorf("write a record: %w", err)
	}
	return nil
}

// remove removes a task's namespace and, after it, its record.
func (f files) remove(id string) error {
	if f.dir == "" {
		return nil
	}
	for _, path := range []string{f.namespace(id), f.path(id)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a record: %w", err)
		}
	}
	return nil
}

// namespace returns the path that represents a task's network namespace: an empty file
// beside the record, or a path without a file if nothing is stored.
func (f files) namespace(id string) string { return filepath.Join(f.dir, id+".netns") }

// makeNamespace makes the file. An empty path has none.
func (f files) makeNamespace(path string) error {
	if f.dir == "" || path == "" {
		return nil
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	return nil
}

func (f files) path(id string) string { return filepath.Join(f.dir, id+recordSuffix) }
