package groups

import (
	"bytes"
	"encoding/json"

	"github.com/musterhq/muster/workerd/executor"
)

// mark begins the handle of a group. A handle that does not begin with it is that of the
// main container alone, as the list of an executor has it.
var mark = []byte("muster-group-1:")

// handles are the handles of the containers of a group, by name.
type handles map[string][]byte

func (h handles) of(container string) []byte { return h[container] }

// decode reads a handle. What cannot be read counts as unknown: executors find tasks by
// their ids.
func decode(handle []byte) handles {
	data, marked := bytes.CutPrefix(handle, mark)
	if !marked {
		return handles{Main: handle}
	}
	var kept handles
	if err := json.Unmarshal(data, &kept); err != nil {
		return nil
	}
	return kept
}

// Handle returns the newest handle of the group.
func (g *Group) Handle() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := handles{Main: g.main.handle}
	for _, c := range g.others {
		all[c.name] = c.handle
	}
	// Maps of bytes can always be encoded.
	data, _ := json.Marshal(all)
	return append(bytes.Clone(mark), data...)
}

// RefOf names a container of a task for its executor. The handle is that of the group.
func RefOf(task, container string, handle []byte) executor.Ref {
	return executor.Ref{TaskID: ContainerID(task, container), Handle: decode(handle).of(container)}
}
