package executor

import (
	"context"
	"fmt"
)

// Fixed is a set of executors that live in this process and never change.
type Fixed struct {
	all []*Described
}

var _ Set = (*Fixed)(nil)

// NewFixed asks executors what they are, and makes a set of them.
func NewFixed(ctx context.Context, executors ...Executor) (*Fixed, error) {
	set := &Fixed{}
	for i, e := range executors {
		about, err := e.Describe(ctx)
		if err != nil {
			return nil, fmt.Errorf("describe executor %d: %w", i, err)
		}
		set.all = append(set.all, NewDescribed(e, about))
	}
	return set, nil
}

// For returns the executor that runs a kind of runtime.
func (f *Fixed) For(_ context.Context, kind, holder string) (*Described, error) {
	var unhealthy *Described
	for _, d := range f.all {
		switch {
		case holder != "":
			if d.Name == holder {
				return d, nil
			}
		case !d.Runs(kind):
		case d.Healthy():
			return d, nil
		case unhealthy == nil:
			unhealthy = d
		}
	}
	switch {
	case holder != "":
		return nil, NoHolder(holder)
	case unhealthy != nil:
		return unhealthy, nil
	}
	return nil, NoExecutor(kind)
}

// Describe returns what the executors said of themselves at first.
func (f *Fixed) Describe(context.Context) []*Described { return f.all }

// Changes never receives.
func (f *Fixed) Changes() <-chan struct{} { return nil }
