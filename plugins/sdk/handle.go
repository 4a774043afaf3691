package sdk

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
)

// Handle is state that an executor gets back with each call for a task. The worker stores
// it without reading it.
type Handle []byte

// NewHandle returns a handle with a version and the JSON of state. The version says how to
// read the state, because a newer or older executor than the one that wrote the handle may
// read it.
func NewHandle(version int, state any) (Handle, error) {
	raw, err := json.Marshal(state)
	if err != nil {
		return nil, fmt.Errorf("encode a handle: %w", err)
	}
	return append(strconv.AppendInt(nil, int64(version), 10), append([]byte{' '}, raw...)...), nil
}

// Read reads the handle into state if it has the given version, and reports whether it did.
// It returns false for an empty handle, another version, or a handle that cannot be read.
// Then the executor must find the task by its id.
func (h Handle) Read(version int, state any) bool {
	head, raw, found := bytes.Cut(h, []byte{' '})
	if !found {
		return false
	}
	got, err := strconv.Atoi(string(head))
	if err != nil || got != version {
		return false
	}
	return json.Unmarshal(raw, state) == nil
}
