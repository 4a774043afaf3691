package ca

import (
	"context"
	"errors"

	"go.uber.org/zap"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/seal"
)

// KeyNames returns the names of the keys that can open the secrets here. Reseal seals with
// the first.
func (a *Authority) KeyNames() []string {
	var names []string
	for _, k := range a.keys() {
		names = append(names, k.Name())
	}
	return names
}

// keys returns the configured keys.
func (a *Authority) keys() []*seal.Key {
	keys, err := a.cfg.Keys.Keys()
	if err != nil {
		a.cfg.Logger.Warn("keeping the former keys", zap.Error(err))
	}
	return keys
}

// SealedWith returns the name of the key that sealed the authority's secrets.
func (a *Authority) SealedWith(ctx context.Context) (string, error) {
	o, err := a.open(ctx)
	if err != nil {
		return "", err
	}
	return o.key.Name(), nil
}

// ErrOtherKey refuses to reseal because the first key is no longer the expected one.
var ErrOtherKey = errors.New("the first key is another by now")

// Reseal seals the authority's secrets with the first key. The caller names that key, after
// making sure that every apid has it.
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
