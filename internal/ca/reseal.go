package ca

import (
	"context"
	"errors"

	"go.uber.org/zap"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/seal"
)

// KeyNames returns the names of the keys that secrets can be opened with here. The
// first is what Reseal seals with.
func (a *Authority) KeyNames() []string {
	var names []string
	for _, k := range a.keys() {
		names = append(names, k.Name())
	}
	return names
}

// keys returns the keys that there are.
func (a *Authority) keys() []*seal.Key {
	keys, err := a.cfg.Keys.Keys()
	if err != nil {
		a.cfg.Logger.Warn("keeping the former keys", zap.Error(err))
	}
	return keys
}

// SealedWith names the key that the authority's secrets are sealed with.
func (a *Authority) SealedWith(ctx context.Context) (string, error) {
	o, err := a.open(ctx)
	if err != nil {
		return "", err
	}
	return o.key.Name(), nil
}

// ErrOtherKey refuses to reseal: the first key is not the expected one any more.
var ErrOtherKey = errors.New("the first key is another by now")

// Reseal seals the authority's secrets with the first key, whose name the caller
// must know, after making sure that every apid has it.
func (a *Authority) Reseal(ctx context.Context, name, by string) error {
	first := a.keys()[0]
	if first.Name() != name {
		return ErrOtherKey
	}
	was := ""
	err := a.change(ctx, func(o *opened, _ *recordv1.Authority) error {
		was, o.key = o.key.Name(), first
		return nil
	})
	if err != nil {
		return err
	}
	a.cfg.Logger.Info("the authority's secrets are sealed with another key", zap.String("key", name), zap.String("before", was), zap.String("by", by))
	return nil
}
