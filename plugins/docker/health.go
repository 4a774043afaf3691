package docker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/docker/docker/api/types/container"
	"google.golang.org/protobuf/proto"

	"github.com/musterhq/muster/plugins/internal/health"
	"github.com/musterhq/muster/plugins/sdk"
)

// errUnhealthy is why a container whose health check fails counts as failed.
var errUnhealthy = errors.New("unhealthy")

// checkLag is how long the Engine may take to record a check after the event about its
// end.
const checkLag = 250 * time.Millisecond

// healthy returns when a container is healthy or has ended. One that becomes
// unhealthy is stopped.
func (e *Executor) healthy(ctx context.Context, found *container.InspectResponse) (*container.InspectResponse, error) {
	if !checked(found) || settled(found) {
		return found, nil
	}
	err := e.watch(ctx, found.ID, nil, func() (bool, error) {
		var err error
		found, err = e.inspect(ctx, found.ID)
		return err == nil && (settled(found) || found.State.Health.Status == container.Unhealthy), err
	})
	if err != nil || settled(found) {
		return found, err
	}
	if err := e.stop(ctx, found.ID, nil); err != nil {
		return nil, err
	}
	return nil, sdk.Failed(fmt.Errorf("the container is %w: %s", errUnhealthy, health.Unhealthy(healthOf(found))))
}

// checked reports whether a container has a health check.
func checked(found *container.InspectResponse) bool {
	return found.State.Health != nil && found.State.Health.Status != container.NoHealthcheck
}

// settled reports whether there is nothing to wait for any more.
func settled(found *container.InspectResponse) bool {
	return !alive(found) || !checked(found) || found.State.Health.Status == container.Healthy
}

// retries returns how many health checks in a row must fail until a container is
// unhealthy.
func retries(found *container.InspectResponse) int {
	if check := found.Config.Healthcheck; check != nil && check.Retries > 0 {
		return check.Retries
	}
	return health.DefaultRetries
}

// failedChecks reports whether a container that has ended was unhealthy then. Its
// status does not say: the Engine calls all that have ended unhealthy. The count
// of failures stays as it was.
func failedChecks(found *container.InspectResponse) bool {
	return checked(found) && found.State.Health.FailingStreak >= retries(found)
}

// healthOf returns what a container's health check says, or nil if there is none.
// Of a container that has ended only failures are known.
func healthOf(found *container.InspectResponse) *sdk.Health {
	if !checked(found) || !alive(found) && !failedChecks(found) {
		return nil
	}
	said := &sdk.Health{
		State:        sdk.HealthStarting,
		FailedChecks: uint32(max(found.State.Health.FailingStreak, 0)),
		Retries:      uint32(retries(found)),
	}
	switch found.State.Health.Status {
	case container.Healthy:
		said.State = sdk.HealthHealthy
	case container.Unhealthy:
		said.State = sdk.HealthUnhealthy
	}
	if last := lastCheck(found); last != nil && last.ExitCode != 0 {
		said.ExitCode, said.Output = int32(last.ExitCode), health.Output(last.Output)
	}
	return said
}

// lastCheck returns the last run of a container's health check that has ended, or
// nil.
func lastCheck(found *container.InspectResponse) *container.HealthcheckResult {
	if found.State.Health == nil || len(found.State.Health.Log) == 0 {
		return nil
	}
	return found.State.Health.Log[len(found.State.Health.Log)-1]
}

// Observe implements [sdk.Observer].
func (e *Executor) Observe(ctx context.Context, ref sdk.Ref, emit func(sdk.Observation) error) error {
	found, err := e.find(ctx, ref.TaskID, ref.Handle)
	if err != nil {
		return err
	}
	if !hasCheck(found.Config.Healthcheck) {
		return nil
	}
	lag := time.NewTimer(checkLag)
	defer lag.Stop()
	var last *sdk.Observation
	return gone(ref.TaskID, e.watch(ctx, found.ID, lag, func() (bool, error) {
		found, err := e.inspect(ctx, found.ID)
		if err != nil {
			return false, err
		}
		if started(found) && !alive(found) {
			return true, nil
		}
		now := health.Observation(status(found))
		if last != nil && now.Message == last.Message && now.Error == last.Error && proto.Equal(now.Status, last.Status) {
			return false, nil
		}
		last = &now
		return false, emit(now)
	}))
}

// hasCheck reports whether a container's configuration, which includes that of its
// image, has a health check.
func hasCheck(check *container.HealthConfig) bool {
	return check != nil && len(check.Test) > 0 && check.Test[0] != "NONE"
}
