package objects

import (
	"github.com/tidwall/btree"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/store"
)

// plainKind describes a kind whose objects are made up by one record each, under their
// id, and have unique names.
type plainKind[R any] struct {
	kind    musterv1.ObjectKind
	table   *store.Table[R]
	name    func(record R) string
	labels  func(record R) map[string]string
	message func(o *Plain[R]) proto.Message
}

// Plain is an object that one record makes up.
type Plain[R any] struct {
	ID      string
	Version uint64
	Record  R
	of      *plainKind[R]
}

// Kind is the object's kind.
func (o *Plain[R]) Kind() musterv1.ObjectKind { return o.of.kind }

// Key is the object's id.
func (o *Plain[R]) Key() string { return o.ID }

// Name is the object's name, unique in its kind.
func (o *Plain[R]) Name() string { return o.of.name(o.Record) }

// Labels are those of the object's spec.
func (o *Plain[R]) Labels(*Reader) (map[string]string, bool) { return o.of.labels(o.Record), true }

// Message is the object as users see it.
func (o *Plain[R]) Message(*Reader) proto.Message { return o.of.message(o) }

func (o *Plain[R]) seen(at Point) (known, all bool) {
	known = at.seen(o.of.table, o.ID, o.Version)
	return known, known
}

// Collection holds the objects of one plain kind.
type Collection[R any] struct {
	plainKind[R]
	items btree.Map[string, *Plain[R]]
	// ids finds objects by their folded name.
	ids map[string]string
}

func newCollection[R any](kind plainKind[R]) *Collection[R] {
	return &Collection[R]{plainKind: kind, ids: map[string]string{}}
}

// collection holds the objects of one kind that has no joins with other kinds.
type collection interface {
	// advance takes over what has changed from one snapshot to the next.
	advance(changes []Change, from, to *store.Snapshot) []Change
	// presence is the table whose records say which objects exist, and joined are
	// further tables that change them.
	presence() sequenced
	joined() []sequenced
}

func (c *Collection[R]) presence() sequenced { return c.table }

func (c *Collection[R]) joined() []sequenced { return nil }

func (c *Collection[R]) advance(changes []Change, from, to *store.Snapshot) []Change {
	for change := range c.table.Changes(from, to) {
		id := change.Key()
		next := Change{Kind: c.kind, ID: id}
		if old, had := c.items.Delete(id); had {
			next.Old = old
			// Another object may have taken the name over in the same step.
			if name := fold(old.Name()); c.ids[name] == id {
				delete(c.ids, name)
			}
		}
		if e := change.New; e != nil {
			o := &Plain[R]{ID: id, Version: e.Version, Record: e.Value, of: &c.plainKind}
			c.items.Set(id, o)
			c.ids[fold(o.Name())] = id
			next.New = o
		}
		if next.Old != nil || next.New != nil {
			changes = append(changes, next)
		}
	}
	return changes
}

// Ascend calls fn for each object in order of id, from an id on, until it returns
// false.
func (c *Collection[R]) Ascend(from string, fn func(*Plain[R]) bool) {
	c.items.Ascend(from, func(_ string, o *Plain[R]) bool { return fn(o) })
}

// Find resolves an id, a name, or a unique prefix of an id, in this order. The object
// is nil if nothing fits.
func (c *Collection[R]) Find(ref string) (*Plain[R], error) {
	if o, ok := c.items.Get(ref); ok {
		return o, nil
	}
	if o, ok := c.items.Get(c.ids[fold(ref)]); ok {
		return o, nil
	}
	return unique(ref, c.Ascend, func(o *Plain[R]) (string, string) { return o.ID, o.Name() })
}
