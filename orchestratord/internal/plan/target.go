package plan

import (
	"bytes"
	"fmt"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/specdiff"
	"github.com/musterhq/muster/internal/state"
)

// target is what tasks of a slot should be made of, and by which rules they are
// kept. During an update slots have different ones: those whose turn has not come
// are kept by what they were made of.
type target struct {
	digest   []byte
	version  uint64
	endpoint []byte // digest of what is published
	spec     *musterv1.TaskSpec
	policy   policy
	limit    int64
	matches  func(node string) bool

	w       *Input
	changes map[string]specdiff.Change // how the spec differs from others, by their digest
}

func newTarget(w *Input, digest, endpoint []byte, version uint64) (*target, error) {
	t := &target{w: w, digest: digest, endpoint: endpoint, version: version, spec: w.Spec(digest)}
	if t.spec == nil {
		return nil, fmt.Errorf("%w: digest %s", ErrSpecUnknown, state.SpecKey(digest))
	}
	t.policy = policyOf(t.spec.GetRestart())
	t.limit = w.HistoryLimit
	if t.policy.attempts > 0 {
		// As many as the policy speaks of are always to be seen.
		t.limit = int64(min(t.policy.attempts, 1<<31)) + 1
	}
	var err error
	if t.matches, err = w.Cluster.Matcher(t.spec.GetPlacement().GetConstraints()); err != nil {
		return nil, fmt.Errorf("constraints of the service: %w", err)
	}
	return t, nil
}

// clean reports whether a task is what the target asks for.
func (g *target) clean(t *state.Task) bool {
	switch {
	case !bytes.Equal(t.Record.EndpointDigest, g.endpoint):
		return false
	case bytes.Equal(t.Record.SpecDigest, g.digest):
		return true
	default:
		return g.change(t.Record.SpecDigest).Keeps(t.NodeID, t.State(), g.matches)
	}
}

// change returns how the target's spec differs from another.
func (g *target) change(digest []byte) specdiff.Change {
	if c, ok := g.changes[string(digest)]; ok {
		return c
	}
	c := specdiff.Tasks(g.w.Spec(digest), g.spec)
	if g.changes == nil {
		g.changes = map[string]specdiff.Change{}
	}
	g.changes[string(digest)] = c
	return c
}
