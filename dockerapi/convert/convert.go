// Package convert turns Docker's objects into Muster's and back. A field of Docker's that
// Muster does not have is refused by its name.
package convert

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// faults collects the fields of one spec that cannot be honoured.
type faults struct{ list []error }

func (f *faults) add(field, format string, a ...any) {
	f.list = append(f.list, fmt.Errorf("%s: "+format, append([]any{field}, a...)...))
}

func (f *faults) err() error { return errors.Join(f.list...) }

// enum is Docker's word for a value of Muster's. The zero value of both sides is "".
type enum[M comparable] map[string]M

// muster returns the value of a word.
func (e enum[M]) muster(f *faults, field, word string) M {
	var none M
	if word == "" {
		return none
	}
	v, ok := e[word]
	if !ok {
		f.add(field, "invalid value %q: want one of %s", word, strings.Join(slices.Sorted(maps.Keys(e)), ", "))
	}
	return v
}

// docker returns the word of a value.
func (e enum[M]) docker(v M) string {
	for word, of := range e {
		if of == v {
			return word
		}
	}
	return ""
}

// value returns the zero value for nil.
func value[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}

// duration is for fields of Docker's in which nothing and zero mean the same.
func duration(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

func optionalDuration(d *time.Duration) *durationpb.Duration {
	if d == nil {
		return nil
	}
	return durationpb.New(*d)
}

func dockerDuration(d *durationpb.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	v := d.AsDuration()
	return &v
}

func instant(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func optionalInstant(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	v := t.AsTime()
	return &v
}

// Meta returns what Docker says of every object.
func Meta(m *musterv1.Meta) swarm.Meta {
	return swarm.Meta{
		Version:   swarm.Version{Index: m.GetVersion()},
		CreatedAt: instant(m.GetCreatedAt()),
		UpdatedAt: instant(m.GetUpdatedAt()),
	}
}

// annotations never has nil labels: clients index them.
func annotations(name string, labels map[string]string) swarm.Annotations {
	return swarm.Annotations{Name: name, Labels: labelsOf(labels)}
}

func labelsOf(labels map[string]string) map[string]string {
	if labels == nil {
		return map[string]string{}
	}
	return labels
}

func driver(d *swarm.Driver) *musterv1.Driver {
	if d == nil {
		return nil
	}
	return &musterv1.Driver{Name: d.Name, Options: d.Options}
}

func dockerDriver(d *musterv1.Driver) *swarm.Driver {
	if d == nil {
		return nil
	}
	return &swarm.Driver{Name: d.Name, Options: d.Options}
}

// prefix reads an address with its prefix length. What is no such thing is left out.
func prefix(text string) netip.Prefix {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(a, a.BitLen())
	}
	return netip.Prefix{}
}

// text writes an address or a prefix; "" for none.
func text[T interface {
	IsValid() bool
	String() string
}](v T) string {
	if !v.IsValid() {
		return ""
	}
	return v.String()
}

func each[A, B any](list []A, convert func(A) B) []B {
	if len(list) == 0 {
		return nil
	}
	out := make([]B, len(list))
	for i, v := range list {
		out[i] = convert(v)
	}
	return out
}

func index(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }
