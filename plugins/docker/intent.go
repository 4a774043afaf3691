package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// intent is a note that a container is about to be created. The Engine does not
// stop creating a container when its caller dies; for a moment nothing in the
// Engine shows that there will be one. The note does, so that the removal
// of the task knows to wait for it.
type intent struct {
	TaskID string `json:"taskId"`
	NodeID string `json:"nodeId"`
	// Name and Image are the container's.
	Name  string `json:"name"`
	Image string `json:"image"`
	// Networked is true if there will be a pause container of the task too.
	Networked bool `json:"networked,omitempty"`
}

// isNetworked tells whether a note is about a networked task.
func (i *intent) isNetworked() bool { return i != nil && i.Networked }

// intents keeps notes, one file each.
type intents struct{ dir string }

const (
	intentSuffix     = ".creating"
	unfinishedSuffix = ".new"
)

// idPattern matches valid task ids: an id becomes a file's name.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$`)

func (i intents) path(taskID string) string { return filepath.Join(i.dir, taskID+intentSuffix) }

// write makes a note.
func (i intents) write(note intent) error {
	raw, err := json.Marshal(note)
	if err != nil {
		return fmt.Errorf("encode a note: %w", err)
	}
	if err := os.MkdirAll(i.dir, 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	unfinished := i.path(note.TaskID) + unfinishedSuffix
	if err := os.WriteFile(unfinished, raw, 0o600); err != nil {
		return fmt.Errorf("write a note: %w", err)
	}
	if err := os.Rename(unfinished, i.path(note.TaskID)); err != nil {
		return fmt.Errorf("write a note: %w", err)
	}
	return nil
}

// read returns the note on a task, or nil.
func (i intents) read(taskID string) (*intent, error) {
	if !idPattern.MatchString(taskID) {
		return nil, nil
	}
	raw, err := os.ReadFile(i.path(taskID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read a note: %w", err)
	}
	note := &intent{}
	if err := json.Unmarshal(raw, note); err != nil {
		return nil, fmt.Errorf("read a note: %w", err)
	}
	return note, nil
}

// remove removes the note on a task, and what a process left that was killed
// while it wrote it.
func (i intents) remove(taskID string) error {
	if !idPattern.MatchString(taskID) {
		return nil
	}
	for _, path := range []string{i.path(taskID), i.path(taskID) + unfinishedSuffix} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a note: %w", err)
		}
	}
	return nil
}

// list returns all notes. Of one that was not finished only the task is known.
func (i intents) list() ([]intent, error) {
	entries, err := os.ReadDir(i.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the notes: %w", err)
	}
	var notes []intent
	for _, entry := range entries {
		if id, unfinished := strings.CutSuffix(entry.Name(), intentSuffix+unfinishedSuffix); unfinished {
			notes = append(notes, intent{TaskID: id})
			continue
		}
		id, found := strings.CutSuffix(entry.Name(), intentSuffix)
		if !found {
			continue
		}
		note, err := i.read(id)
		if err != nil {
			return nil, err
		}
		if note != nil {
			notes = append(notes, *note)
		}
	}
	return notes, nil
}
