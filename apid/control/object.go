package control

import (
	"cmp"
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// object is a type of objects.
type object interface {
	comparable
	objects.Object
}

// kind serves the objects of one kind: users find them by id, name or prefix of the
// id, list them in pages, and change them by requests that name the version that they
// were decided on. R is the record that such requests write, O the object and M its
// message.
type kind[R proto.Message, O object, M proto.Message] struct {
	*backend.Backend
	// name names an object of the kind in messages: "service".
	name string
	// find resolves a reference. It returns nil if nothing fits.
	find func(r *objects.Reader, ref string) (O, error)
	// ascend calls fn for each object in order of id, from an id on, until it
	// returns false.
	ascend func(r *objects.Reader, from string, fn func(O) bool)
	// message is the object as users see it.
	message func(r *objects.Reader, o O) M
	// names are those that filters compare with. Nil: the object's name.
	names func(r *objects.Reader, o O) []string

	// table holds the records.
	table *store.Table[R]
	// key is the key of an object's record. Nil: the object's id.
	key func(o O) string
	// recordName is a record's name, which is unique in the kind whatever the case of
	// its letters. Nil: names are not unique.
	recordName func(record R) string
	// implicit says that objects exist without a record.
	implicit bool
}

// resolve finds the one object that a reference means, and returns what is asked for.
func resolve[R proto.Message, O object, M proto.Message, V any](ctx context.Context, k *kind[R, O, M], ref string, of func(*objects.Reader, O) V) (V, error) {
	var (
		value       V
		found, none O
		err         error
	)
	incomplete := k.ReadWhole(ctx, k.View.Read, func(r *objects.Reader) {
		if found, err = k.find(r, ref); found != none {
			value = of(r, found)
		}
	})
	switch {
	case incomplete != nil:
		return value, incomplete
	case err != nil:
		return value, k.Fail("resolve "+k.name, err)
	case found == none:
		return value, backend.NotFound(k.name, ref)
	}
	return value, nil
}

// shown returns the object that a reference means, as users see it.
func (k *kind[R, O, M]) shown(ctx context.Context, ref string) (M, error) {
	return resolve(ctx, k, ref, k.message)
}

// id returns the id of the object that a reference means.
func (k *kind[R, O, M]) id(ctx context.Context, ref string) (string, error) {
	return resolve(ctx, k, ref, func(_ *objects.Reader, o O) string { return o.Key() })
}

// get serves the call that returns one object.
func (k *kind[R, O, M]) get(ctx context.Context, ref string) (M, error) {
	if err := k.Ready(ctx); err != nil {
		var none M
		return none, err
	}
	return k.shown(ctx, ref)
}

// listRequest is a request for a list, of any kind.
type listRequest interface {
	proto.Message
	GetNames() []string
	GetNamePrefixes() []string
	GetIdPrefixes() []string
	GetLabels() []string
	GetPageSize() uint32
	GetPageToken() string
}

// selection says which objects a list may hold, besides what all lists filter by.
type selection[O any] struct {
	// ascend visits the objects. Nil: all of the kind.
	ascend func(from string, fn func(O) bool)
	// keep reports whether the list may hold an object. Nil: it may.
	keep func(o O) bool
}

// list serves the call that returns a page of objects, and the token of the next
// page. Narrow may be nil.
func (k *kind[R, O, M]) list(ctx context.Context, req listRequest, narrow func(r *objects.Reader) selection[O]) ([]M, string, error) {
	if err := k.Ready(ctx); err != nil {
		return nil, "", err
	}
	first, err := newPage(req, req.GetPageSize(), req.GetPageToken())
	if err != nil {
		return nil, "", err
	}
	labels, err := parseLabels(req.GetLabels())
	if err != nil {
		return nil, "", err
	}
	filter := nameFilter{names: foldAll(req.GetNames()), prefixes: foldAll(req.GetNamePrefixes())}
	ids := req.GetIdPrefixes()
	var listed []M
	var p page
	err = k.ReadWhole(ctx, k.View.Read, func(r *objects.Reader) {
		listed, p = nil, first
		var chosen selection[O]
		if narrow != nil {
			chosen = narrow(r)
		}
		if chosen.ascend == nil {
			chosen.ascend = func(from string, fn func(O) bool) { k.ascend(r, from, fn) }
		}
		chosen.ascend(p.from, func(o O) bool {
			if !onePrefix(ids, o.Key()) || (chosen.keep != nil && !chosen.keep(o)) || !k.named(r, o, filter) || !labels.matchObject(r, o) {
				return true
			}
			if !p.take(o.Key()) {
				return false
			}
			listed = append(listed, k.message(r, o))
			return true
		})
	})
	return listed, p.next(), err
}

// nameFilter is the names and prefixes of names that a request asks for.
type nameFilter struct{ names, prefixes []string }

// named reports whether an object has one of the names and one of the prefixes.
func (k *kind[R, O, M]) named(r *objects.Reader, o O, f nameFilter) bool {
	if len(f.names) == 0 && len(f.prefixes) == 0 {
		return true
	}
	names := []string{o.Name()}
	if k.names != nil {
		names = k.names(r, o)
	}
	whole, prefix := false, false
	for _, name := range names {
		whole = whole || oneOf(f.names, fold(name))
		prefix = prefix || onePrefix(f.prefixes, fold(name))
	}
	return whole && prefix
}

// create writes the record of a new object, as build returns it, and returns the
// object's id.
func (k *kind[R, O, M]) create(ctx context.Context, build func(tx *store.Tx, id string) (R, error)) (id string, err error) {
	id = state.NewID()
	return id, k.createAs(ctx, id, func(tx *store.Tx) (R, error) { return build(tx, id) })
}

// createAs does it with an id that is new.
func (k *kind[R, O, M]) createAs(ctx context.Context, id string, build func(tx *store.Tx) (R, error)) error {
	ctx, cancel := k.Writing(ctx)
	defer cancel()
	err := k.Update(ctx, func(tx *store.Tx) error {
		record, err := build(tx)
		if err != nil {
			return err
		}
		if err := k.takeName(tx, id, k.recordName(record)); err != nil {
			return err
		}
		k.table.Put(tx, id, record)
		return nil
	})
	return k.Fail("create "+k.name, err)
}

// update changes the record of an object, and returns the object. Version, if it is
// not nil, must be that of the record, which is 0 if there is none. Change returns the
// new record, backend.ErrNoChange, or why the change is refused.
func (k *kind[R, O, M]) update(ctx context.Context, ref string, version *uint64, change func(tx *store.Tx, key string, e store.Entry[R]) (R, error)) (M, error) {
	key, err := k.edit(ctx, "update", ref, func(tx *store.Tx, key string) error {
		e, ok := k.table.Get(tx, key)
		if !ok && !k.implicit {
			return backend.NotFound(k.name, key)
		}
		if version != nil && *version != e.Version {
			name := ref
			if k.recordName != nil {
				name = k.recordName(e.Value)
			}
			return backend.Stale(k.name, name, *version, e.Version)
		}
		next, err := change(tx, key, e)
		if err != nil {
			return err
		}
		if k.recordName != nil {
			if err := k.moveName(tx, key, k.recordName(e.Value), k.recordName(next)); err != nil {
				return err
			}
		}
		k.table.Put(tx, key, next)
		return nil
	})
	if err != nil {
		var none M
		return none, err
	}
	return k.shown(ctx, key)
}

// remove removes the record of an object, and its name. Also, which may be nil, does
// what else belongs to it, or says why it is refused.
func (k *kind[R, O, M]) remove(ctx context.Context, ref string, also func(tx *store.Tx, key string, e store.Entry[R]) error) error {
	_, err := k.edit(ctx, "remove", ref, func(tx *store.Tx, key string) error {
		e, ok := k.table.Get(tx, key)
		if !ok {
			return backend.NotFound(k.name, key)
		}
		if also != nil {
			if err := also(tx, key, e); err != nil {
				return err
			}
		}
		name := state.NameKey(k.name, k.recordName(e.Value))
		if n, ok := k.Tables.Names.Get(tx, name); ok && n.Value.Id == key {
			k.Tables.Names.Delete(tx, name)
		}
		k.table.Delete(tx, key)
		return nil
	})
	return err
}

// edit runs a transaction on the record of the object that a reference means, and
// returns the record's key. This replica may lag behind another one that has just told
// a user of an object, or of another one by the same name. So it looks in the store for
// an object that it does not find, before it refuses the change.
func (k *kind[R, O, M]) edit(ctx context.Context, operation, ref string, fn func(tx *store.Tx, key string) error) (string, error) {
	ctx, cancel := k.Writing(ctx)
	defer cancel()
	former := ""
	for {
		key, err := k.recordKey(ctx, ref)
		if k.recordName != nil && status.Code(err) == codes.NotFound {
			if err = k.Update(ctx, func(tx *store.Tx) error { return k.exists(tx, ref) }); err == nil {
				key, err = k.recordKey(ctx, ref)
			}
		}
		if err == nil {
			err = k.Update(ctx, func(tx *store.Tx) error { return fn(tx, key) })
			if k.recordName != nil && status.Code(err) == codes.NotFound && key != former {
				former = key
				continue
			}
		}
		return key, k.Fail(operation+" "+k.name, err)
	}
}

// recordKey returns the key of the record of the object that a reference means.
func (k *kind[R, O, M]) recordKey(ctx context.Context, ref string) (string, error) {
	return resolve(ctx, k, ref, func(_ *objects.Reader, o O) string {
		if k.key != nil {
			return k.key(o)
		}
		return o.Key()
	})
}

// exists returns an error unless there is an object of this id or name.
func (k *kind[R, O, M]) exists(tx *store.Tx, ref string) error {
	if _, ok := k.table.Get(tx, ref); ok {
		return nil
	}
	// Tables are read each for itself: a name may be seen before the object that it is of.
	if name, ok := k.Tables.Names.Get(tx, state.NameKey(k.name, ref)); ok {
		if _, ok := k.table.Get(tx, name.Value.Id); ok {
			return nil
		}
	}
	return backend.NotFound(k.name, ref)
}

// findRecord resolves the id or the name of an object in a transaction.
func (k *kind[R, O, M]) findRecord(tx *store.Tx, ref string) (id, name string, ok bool) {
	if e, ok := k.table.Get(tx, ref); ok {
		return ref, k.recordName(e.Value), true
	}
	named, ok := k.Tables.Names.Get(tx, state.NameKey(k.name, ref))
	if !ok {
		return "", "", false
	}
	e, ok := k.table.Get(tx, named.Value.Id)
	if !ok {
		return "", "", false
	}
	return named.Value.Id, k.recordName(e.Value), true
}

// taken refuses a name that an object has, as far as this replica knows.
func (k *kind[R, O, M]) taken(name string) error {
	now := k.Snapshot()
	e, taken := k.Tables.Names.Get(now, state.NameKey(k.name, name))
	if !taken {
		return nil
	}
	return k.nameTaken(now, e.Value.Id, name)
}

// nameTaken says that an object has a name, and how that one is written.
func (k *kind[R, O, M]) nameTaken(r store.Reader, id, name string) error {
	if e, ok := k.table.Get(r, id); ok {
		name = cmp.Or(k.recordName(e.Value), name)
	}
	return backend.NameTaken(k.name, name)
}

// takeName makes a name an object's own.
func (k *kind[R, O, M]) takeName(tx *store.Tx, id, name string) error {
	key := state.NameKey(k.name, name)
	if e, ok := k.Tables.Names.Get(tx, key); ok && e.Value.Id != id {
		return k.nameTaken(tx, e.Value.Id, name)
	}
	k.Tables.Names.Put(tx, key, &recordv1.Name{Id: id})
	return nil
}

func (k *kind[R, O, M]) moveName(tx *store.Tx, id, from, to string) error {
	if state.NameKey(k.name, from) == state.NameKey(k.name, to) {
		return nil
	}
	if err := k.takeName(tx, id, to); err != nil {
		return err
	}
	k.Tables.Names.Delete(tx, state.NameKey(k.name, from))
	return nil
}
