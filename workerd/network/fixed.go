package network

import (
	"context"
	"fmt"
)

// Fixed is a set of plugins that live in this process.
type Fixed struct {
	plugins []Plugin
}

var _ Set = (*Fixed)(nil)

// NewFixed asks plugins what they are, and makes a set of them.
func NewFixed(ctx context.Context, plugins ...Plugin) (*Fixed, error) {
	for i, p := range plugins {
		if _, err := p.Describe(ctx); err != nil {
			return nil, fmt.Errorf("describe network plugin %d: %w", i, err)
		}
	}
	return &Fixed{plugins}, nil
}

// Describe asks the plugins what they are.
func (f *Fixed) Describe(ctx context.Context) []*Described {
	all := make([]*Described, 0, len(f.plugins))
	for _, p := range f.plugins {
		if about, err := p.Describe(ctx); err == nil {
			all = append(all, NewDescribed(p, about))
		}
	}
	return all
}

// Changes never receives.
func (f *Fixed) Changes() <-chan struct{} { return nil }
