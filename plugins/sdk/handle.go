package sdk

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
)

// Handle is what an executor wants to be reminded of with each call for a
// task. The worker keeps it and does not look into it.
type Handle []byte

// NewHandle makes a handle: a version, and whatever the executor's JSON of
// state is. The version says how to read the state, for a handle may be read
// by an executor newer, or older, than the one that wrote it.
func NewHandle(version int, state any) (Handle, error) {
	raw, err := json.Marshal(state)
	if err != nil {
		return nil, fmt.Errorf("encode a handle: %w", err)
	}
	return append(strconv.AppendInt(nil, int64(version), 10), append([]byte{' '}, raw...)...), nil
}

// Read reads the handle into state if it has the given version, and reports
// whether it did. For an empty handle, a handle of another version, or one
// that cannot be read it returns false: the executor must then find the task
// by its id.
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
