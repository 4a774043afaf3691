package objects

import (
	"iter"
	"slices"

	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// layout says where in a point the sequence numbers of each table are.
type layout struct {
	tables *state.Tables
	// counted are the tables of a point, in their order in this process.
	counted []sequenced
	// place is where a table's numbers begin, by the table's name.
	place map[string]int
	// presence holds, for each kind, the places of the tables that together say
	// which objects of the kind exist.
	presence [][]int
}

// sequenced is a table whose shards have sequence numbers.
type sequenced interface {
	store.TableDef
	Sequences(sn *store.Snapshot) []uint64
}

func newLayout(t *state.Tables, counted []sequenced, presence [][]sequenced) *layout {
	l := &layout{tables: t, counted: counted, place: map[string]int{}}
	for i, table := range counted {
		l.place[table.Name()] = i * store.Shards
	}
	for _, tables := range presence {
		var places []int
		for _, table := range tables {
			places = append(places, l.place[table.Name()])
		}
		l.presence = append(l.presence, places)
	}
	return l
}

// Point is how far a snapshot has come: the sequence numbers of all shards of
// all tables that objects are joined from.
type Point struct {
	layout  *layout
	numbers []uint64
}

// of returns the point of a snapshot.
func (l *layout) of(sn *store.Snapshot) Point {
	p := Point{layout: l, numbers: make([]uint64, 0, len(l.counted)*store.Shards)}
	for _, t := range l.counted {
		p.numbers = append(p.numbers, t.Sequences(sn)...)
	}
	return p
}

// Sequences returns the numbers of each table under its name.
func (p Point) Sequences() iter.Seq2[string, []uint64] {
	return func(yield func(string, []uint64) bool) {
		for i, t := range p.layout.counted {
			if !yield(t.Name(), p.numbers[i*store.Shards:(i+1)*store.Shards]) {
				return
			}
		}
	}
}

// PointOf returns the point whose tables have these numbers, as Sequences of this
// or another version of apid returned them. A table that the other version did not
// have counts as empty: all that it holds is new. ErrForgotten means that the
// number of shards is another one.
func (v *View) PointOf(sequences map[string][]uint64) (Point, error) {
	p := Point{layout: v.layout, numbers: make([]uint64, len(v.layout.counted)*store.Shards)}
	for name, numbers := range sequences {
		place, known := v.layout.place[name]
		if !known {
			continue
		}
		if len(numbers) != store.Shards {
			return Point{}, ErrForgotten
		}
		copy(p.numbers[place:], numbers)
	}
	return p, nil
}

// covers reports whether everything that o has seen, p has seen too.
func (p Point) covers(o Point) bool {
	if len(p.numbers) != len(o.numbers) {
		return false
	}
	for i, n := range o.numbers {
		if n > p.numbers[i] {
			return false
		}
	}
	return true
}

// Equal reports whether two points are the same.
func (p Point) Equal(o Point) bool { return slices.Equal(p.numbers, o.numbers) }

// seen reports whether a version of a record lies before the point.
func (p Point) seen(t store.TableDef, key string, version uint64) bool {
	return version <= p.numbers[p.layout.place[t.Name()]+store.ShardOf(key)]
}
