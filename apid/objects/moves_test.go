package objects_test

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/seal"
)

// A watcher that goes from view to view knows, wherever it is, which objects
// there are. The views look at different times, so that each sees other steps.
func TestWatcherMovesBetweenViews(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w, end := newWorld(t)
		defer end()
		views := []*objects.View{objects.New(w.store, w.tables, seal.NewKeyring(), 1000), objects.New(w.store, w.tables, seal.NewKeyring(), 1000)}
		for _, v := range views {
			v.Now()
		}
		known := keys(views[0])
		_, point := views[0].Now()
		for range rapid.IntRange(1, 25).Draw(t, "moves") {
			for range rapid.IntRange(1, 6).Draw(t, "steps") {
				w.step(t)
				if look := rapid.IntRange(0, 2*len(views)).Draw(t, "who looks"); look < len(views) {
					views[look].Now()
				}
			}
			v := views[rapid.IntRange(0, len(views)-1).Draw(t, "to")]
			resumed, err := v.Resume(point)
			switch {
			case errors.Is(err, objects.ErrForgotten):
				known = keys(v)
				_, point = v.Now()
			case err != nil || !resumed.Caught:
				t.Fatalf("resume: %v, caught up %v", err, resumed.Caught)
			default:
				for _, c := range resumed.Changes {
					known[named(c)] = c.New != nil
				}
				point = resumed.Point
			}
			got := keys(v)
			for key, there := range known {
				if there && !got[key] {
					t.Fatalf("nothing tells that %s is gone", key)
				}
			}
			for key := range got {
				if !known[key] {
					t.Fatalf("%s was never told of", key)
				}
			}
		}
	})
}

// keys are those of all objects that a view shows.
func keys(v *objects.View) map[string]bool {
	all := map[string]bool{}
	for key := range shown(v) {
		all[key] = true
	}
	return all
}

// named is the key of a changed object, as shown has it.
func named(c objects.Change) string {
	if c.Kind == musterv1.ObjectKind_CLUSTER {
		return "cluster"
	}
	return strings.ToLower(c.Kind.String()) + " " + c.ID
}
