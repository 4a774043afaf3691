package serve

import (
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/limit"
)

// limitFlags are apid's settings of how often a client may call.
type limitFlags struct{ settings limit.Settings }

func (f *limitFlags) check() error {
	if f == nil {
		return nil
	}
	if err := f.settings.Validate(); err != nil {
		return &cli.UsageError{Err: err}
	}
	return nil
}

// make returns the limits; nil for a daemon without.
func (f *limitFlags) make(guard *auth.Guard, log *zap.Logger, metrics prometheus.Registerer) (*limit.Limits, error) {
	if f == nil {
		return nil, nil
	}
	limits, err := limit.New(f.settings, guard != nil, log.Named("limit"), metrics)
	if err != nil {
		return nil, err
	}
	guard.OnRefused(limits.Refused)
	return limits, nil
}
