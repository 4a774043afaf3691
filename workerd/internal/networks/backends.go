package networks

import (
	"bytes"
	"slices"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/internal/backends"
)

// fewChanges is the number of changes that a log keeps anyway.
const fewChanges = 64

// backendLog holds the backends of a service, packed: the changes in the order in which
// they came. A worker looks into them only when too many are out of date.
type backendLog struct {
	// packed are changes as they were sent: they are shared and never copied. The slice
	// only grows, so what others have of it stays as it is.
	packed [][]byte
	// changes is the number of changes, and left that of the backends that are left after
	// them.
	changes, left int
}

// append adds changes.
func (l *backendLog) append(b *networkv1.PackedBackends) error {
	n, err := backends.Count(b.GetChanges())
	if err != nil {
		return err
	}
	if n > 0 {
		l.packed = append(l.packed, b.GetChanges())
		l.changes += n
	}
	l.left = int(b.GetTotal())
	switch {
	case b.GetMore():
		// Only after all parts is it known what is left.
	case l.left == 0:
		*l = backendLog{}
	case l.changes > 2*l.left+fewChanges:
		l.compact()
	}
	return nil
}

// pack packs backends to be appended. How many are then left is an estimate: protocol 2
// does not say.
func (l *backendLog) pack(b *networkv1.Backends) *networkv1.PackedBackends {
	left := len(b.GetBackends())
	if !b.GetComplete() {
		left = max(0, l.left+left-len(b.GetRemoved()))
	}
	return &networkv1.PackedBackends{
		NetworkId: b.GetNetworkId(), ServiceId: b.GetServiceId(), Complete: b.GetComplete(), Total: uint32(left),
		Changes: backends.Pack(b.GetBackends(), b.GetRemoved()),
	}
}

func (l *backendLog) compact() {
	packed, n := backends.Compact(slices.Concat(l.packed...))
	l.packed, l.changes, l.left = nil, n, n
	if n > 0 {
		l.packed = [][]byte{packed}
	}
}

// equal reports whether two logs come to the same backends. It compacts them.
func (l *backendLog) equal(o *backendLog) bool {
	if l.changes == 0 || o.changes == 0 {
		return l.changes == o.changes
	}
	l.compact()
	o.compact()
	return slices.EqualFunc(l.packed, o.packed, bytes.Equal)
}
