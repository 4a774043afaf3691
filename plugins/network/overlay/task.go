//go:build linux

package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
)

// task is a task that is attached, or is about to be.
type task struct {
	id string
	// node is the node that the task runs on.
	node    string
	request *networkv1.AttachRequest
}

// record is what is remembered of a task.
type record struct {
	Node    string          `json:"node"`
	Request json.RawMessage `json:"request"`
}

// recordExtension is that of the files that remember tasks. A record is written before
// the first change of the kernel and removed after the last.
const recordExtension = ".json"

func recordPath(dir, id string) string { return filepath.Join(dir, "tasks", id+recordExtension) }

// readTasks reads the records of tasks. One that cannot be read belongs to a task of which
// only the name is known: it is listed, and can be detached.
func readTasks(dir string) (map[string]*task, error) {
	tasks := make(map[string]*task)
	entries, err := os.ReadDir(filepath.Join(dir, "tasks"))
	if errors.Is(err, fs.ErrNotExist) {
		return tasks, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read records of tasks: %w", err)
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), recordExtension)
		if !ok {
			continue
		}
		data, err := os.ReadFile(recordPath(dir, id))
		if err != nil {
			return nil, fmt.Errorf("read record of task: %w", err)
		}
		t := &task{id: id, request: &networkv1.AttachRequest{}}
		var r record
		err = json.Unmarshal(data, &r)
		if err == nil {
			t.node = r.Node
			err = protojson.Unmarshal(r.Request, t.request)
		}
		if err != nil || t.request.GetTaskId() != id {
			t.request = &networkv1.AttachRequest{TaskId: id}
		}
		tasks[id] = t
	}
	return tasks, nil
}

// write writes a task's record.
func (t *task) write(dir string) error {
	request, err := protojson.Marshal(t.request)
	if err != nil {
		return fmt.Errorf("write record of task: %w", err)
	}
	data, err := json.Marshal(record{Node: t.node, Request: request})
	if err != nil {
		return fmt.Errorf("write record of task: %w", err)
	}
	path := recordPath(dir, t.id)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write record of task: %w", err)
	}
	// A crash leaves the old record or the new one.
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("write record of task: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write record of task: %w", err)
	}
	return nil
}

func removeRecord(dir, id string) error {
	if err := os.Remove(recordPath(dir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record of task: %w", err)
	}
	return nil
}

// addressesOn returns the task's addresses on a network.
func (t *task) addressesOn(network string) []netip.Addr {
	for _, a := range t.request.GetAttachments() {
		if a.GetNetworkId() == network {
			return parseAddresses(a.GetAddresses())
		}
	}
	return nil
}
