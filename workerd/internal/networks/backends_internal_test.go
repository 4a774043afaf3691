package networks

import (
	"fmt"
	"testing"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/internal/backends"
)

// TestChangesInPartsAreCompactedOnce checks that the parts of a large change, which all
// name the number of backends in the end, do not each make the log look at all backends.
func TestChangesInPartsAreCompactedOnce(t *testing.T) {
	t.Parallel()
	const tasks, part = 10_000, 400
	for _, left := range []int{0, 100} {
		var changed []*networkv1.Backend
		for i := range tasks {
			changed = append(changed, &networkv1.Backend{TaskId: fmt.Sprintf("t%d", i)})
		}
		var log backendLog
		if err := log.append(&networkv1.PackedBackends{Total: tasks, Changes: backends.Pack(changed, nil)}); err != nil {
			t.Fatal(err)
		}
		for from := left; from < tasks; from += part {
			var gone []string
			for i := from; i < min(from+part, tasks); i++ {
				gone = append(gone, fmt.Sprintf("t%d", i))
			}
			more, before := from+part < tasks, log.changes
			if err := log.append(&networkv1.PackedBackends{Total: uint32(left), More: more, Changes: backends.Pack(nil, gone)}); err != nil {
				t.Fatal(err)
			}
			if more && log.changes != before+len(gone) {
				t.Fatalf("the log has %d changes after a part, want %d", log.changes, before+len(gone))
			}
		}
		if log.changes != left || log.left != left {
			t.Errorf("the log has %d changes of %d backends, want %d", log.changes, log.left, left)
		}
	}
}
