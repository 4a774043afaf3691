package objects

import (
	"errors"
	"slices"
	"sync"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/store"
)

// ErrForgotten says that changes after a point in time are no longer known.
var ErrForgotten = errors.New("changes since then are no longer known")

// Change is one change of one object. Old is nil if the object was created, New if
// it was removed.
type Change struct {
	Kind     musterv1.ObjectKind
	ID       string
	Old, New Object
	// Known says that the object existed before, although Old is not known.
	Known bool
	// At is when the change was seen here.
	At time.Time
}

// batch is what changed from one snapshot to the next.
type batch struct {
	// added is when it could be read first.
	added   time.Time
	changes []Change
	// after is where the batch leads.
	after Point
}

// history remembers the last changes. Its memory is bounded by the number of
// changes and of batches.
type history struct {
	most int

	mu      sync.Mutex
	batches []batch
	// first is the number of batches[0]; before is the point that it starts from.
	first  uint64
	before Point
	size   int
	// grown is closed and replaced when a batch is added.
	grown chan struct{}
}

// maxBatches bounds the points that are kept: 1.3 KB each.
const maxBatches = 4096

// A watch may be late by patience, however much has changed meanwhile: what is
// younger is kept until it is burst times as much as is kept of what is older.
const (
	patience = 5 * time.Second
	burst    = 4
)

func newHistory(most int) *history {
	return &history{most: most, grown: make(chan struct{})}
}

func (h *history) begin(at Point) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.before = at
}

// add adds a batch that was begun at a time. To work out what thousands of changes
// make takes a while, in which no watch can read: that does not count as being late.
// objects is how many there are: a history that is shorter than one change of each
// would make watches of a large cluster too slow that are not.
func (h *history) add(changes []Change, after Point, begun time.Time, objects int) {
	for i := range changes {
		changes[i].At = begun
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.batches = append(h.batches, batch{added: time.Now(), changes: changes, after: after})
	h.size += len(changes)
	drop, most := 0, max(h.most, objects)
	tooMany := func(oldest batch) bool {
		return h.size > burst*most || h.size > most && begun.Sub(oldest.added) > patience
	}
	for len(h.batches)-drop > maxBatches || (tooMany(h.batches[drop]) && len(h.batches)-drop > 1) {
		h.size -= len(h.batches[drop].changes)
		h.before = h.batches[drop].after
		drop++
	}
	if drop > 0 {
		h.first += uint64(drop)
		clear(h.batches[:drop])
		h.batches = h.batches[drop:]
	}
	close(h.grown)
	h.grown = make(chan struct{})
}

// Cursor is a place in the sequence of changes of one view.
type Cursor struct{ next uint64 }

// Now returns where the view is, and the cursor for what follows.
func (v *View) Now() (Cursor, Point) {
	v.sync()
	h := v.history
	h.mu.Lock()
	defer h.mu.Unlock()
	return Cursor{h.first + uint64(len(h.batches))}, h.last()
}

// last returns the newest point.
func (h *history) last() Point {
	if n := len(h.batches); n > 0 {
		return h.batches[n-1].after
	}
	return h.before
}

// Since returns the changes after a cursor, at most one for each object, the
// cursor and point after them, and a channel that is closed when there is
// more. ErrForgotten means that the reader was too slow.
func (v *View) Since(c Cursor) ([]Change, Cursor, Point, <-chan struct{}, error) {
	h := v.history
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.next < h.first {
		return nil, c, Point{}, nil, ErrForgotten
	}
	var merged merger
	for _, b := range h.batches[c.next-h.first:] {
		merged.add(b.changes)
	}
	return merged.list(), Cursor{h.first + uint64(len(h.batches))}, h.last(), h.grown, nil
}

// Resumed is what Resume returns.
type Resumed struct {
	Changes []Change
	Cursor  Cursor
	Point   Point
	// Caught is false if the view has not come as far as the point that was
	// asked for; the rest is not set then.
	Caught bool
	// More is closed when the view has come further.
	More <-chan struct{}
}

// Resume returns the changes after a point that any view has reported, at
// most one for each object. ErrForgotten means that this view cannot know all
// that happened since: it began to look later, or skipped the point (aligned).
func (v *View) Resume(from Point) (Resumed, error) {
	v.sync()
	h := v.history
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.last().covers(from) {
		return Resumed{More: h.grown}, nil
	}
	// The newest place that lies before the point: all that follows it is new,
	// or has been seen and does no harm.
	start := len(h.batches)
	for start > 0 && !from.covers(h.batches[start-1].after) {
		start--
	}
	if start == 0 && !from.covers(h.before) {
		return Resumed{}, ErrForgotten
	}
	if !h.aligned(from, start) {
		return Resumed{}, ErrForgotten
	}
	// What has been seen is left out before changes are joined: what was made
	// before the point and removed after it must not look as if it had come and
	// gone.
	var merged merger
	for _, b := range h.batches[start:] {
		var news []Change
		for _, c := range b.changes {
			if c, ok := unseen(c, from); ok {
				news = append(news, c)
			}
		}
		merged.add(news)
	}
	return Resumed{
		Changes: merged.list(), Cursor: Cursor{h.first + uint64(len(h.batches))}, Point: h.last(), Caught: true, More: h.grown,
	}, nil
}

// aligned reports whether this view has stood where another one stood at a
// point, as far as it matters for which objects there are. Views that follow
// the same store do not see each of its steps. If a point falls between two
// steps of this view, then an object may have been there at the point that was
// made and removed within the one step, and nothing tells of its removal. Each
// shard is looked at by itself, with the same shard of the other tables that say
// whether objects of the kind exist.
func (h *history) aligned(at Point, start int) bool {
	steps := make([]Point, 0, len(h.batches)-start+1)
	if start == 0 {
		steps = append(steps, h.before)
	} else {
		steps = append(steps, h.batches[start-1].after)
	}
	for _, b := range h.batches[start:] {
		steps = append(steps, b.after)
	}
	for _, places := range at.layout.presence {
		for shard := range store.Shards {
			same := func(p Point) bool {
				return !slices.ContainsFunc(places, func(place int) bool { return p.numbers[place+shard] != at.numbers[place+shard] })
			}
			if !slices.ContainsFunc(steps, same) {
				return false
			}
		}
	}
	return true
}

// unseen drops a change that a watcher at a point has seen already: replicas join
// the same changes into different batches. A change that it cannot decide on
// is kept, and so is seen twice.
func unseen(c Change, at Point) (Change, bool) {
	if c.New == nil {
		return c, true
	}
	known, all := c.New.seen(at)
	c.Known = c.Known || known
	return c, !all
}

// merger joins the changes of each object into one.
type merger struct {
	order []Change
	index map[mergeKey]int
}

type mergeKey struct {
	kind musterv1.ObjectKind
	id   string
}

func (m *merger) add(changes []Change) {
	if m.index == nil {
		m.index = map[mergeKey]int{}
	}
	for _, c := range changes {
		k := mergeKey{c.Kind, c.ID}
		i, ok := m.index[k]
		if !ok {
			m.index[k] = len(m.order)
			m.order = append(m.order, c)
			continue
		}
		first := &m.order[i]
		if c.New == nil && first.Known && first.Old == nil {
			first.Old = first.New
		}
		first.New, first.At = c.New, c.At
	}
}

// list leaves out what came and went in between.
func (m *merger) list() []Change {
	kept := m.order[:0]
	for _, c := range m.order {
		if c.Old != nil || c.New != nil {
			kept = append(kept, c)
		}
	}
	return kept
}

// Changed returns a channel that is closed when there are changes after a
// cursor, and the cursor of now.
func (v *View) Changed(c Cursor) (Cursor, <-chan struct{}) {
	h := v.history
	h.mu.Lock()
	defer h.mu.Unlock()
	now := Cursor{h.first + uint64(len(h.batches))}
	if c != now {
		already := make(chan struct{})
		close(already)
		return now, already
	}
	return now, h.grown
}
