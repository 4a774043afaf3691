//go:build linux

package process

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/musterhq/muster/plugins/internal/health"
	"github.com/musterhq/muster/plugins/process/internal/taskdir"
	"github.com/musterhq/muster/plugins/sdk"
)

// healthPoll is the interval at which the result of a task's health check is read. The
// supervisor runs the checks and writes the result.
const healthPoll = 100 * time.Millisecond

// Healthcheck is the health check in a payload.
type Healthcheck struct {
	Command       []string      `json:"command,omitempty" jsonschema:"the program and its arguments; exit code 0 is success"`
	Shell         string        `json:"shell,omitempty" jsonschema:"a line that /bin/sh runs, in place of command"`
	TCP           uint16        `json:"tcp,omitempty" jsonschema:"a port of 127.0.0.1 that must accept connections, in place of command; a target port that the task publishes means the port that the process listens on"`
	Interval      *sdk.Duration `json:"interval,omitempty" jsonschema:"the time from the start, and from the end of a check, to the next one; absent: 30s"`
	Timeout       *sdk.Duration `json:"timeout,omitempty" jsonschema:"how long a check may take; absent: 30s"`
	Retries       uint32        `json:"retries,omitempty" jsonschema:"how many checks must fail in a row until the task is unhealthy; absent: 3"`
	StartPeriod   *sdk.Duration `json:"startPeriod,omitempty" jsonschema:"how long after the start failures do not count, until a check succeeds; absent: 0s"`
	StartInterval *sdk.Duration `json:"startInterval,omitempty" jsonschema:"the interval in the start period until a check succeeds; absent: 5s"`
}

// shortest is the least duration of a health check's settings, apart from 0.
const shortest = time.Millisecond

// planCheck returns the health check of a payload, or nil.
func planCheck(payload *Healthcheck, spec taskdir.Spec) (*taskdir.Check, error) {
	if payload == nil {
		return nil, nil
	}
	set := 0
	for _, is := range []bool{len(payload.Command) > 0, payload.Shell != "", payload.TCP != 0} {
		if is {
			set++
		}
	}
	if set != 1 {
		return nil, sdk.SpecFault("healthcheck", errors.New("it must have exactly one of command, shell and tcp"))
	}
	check := &taskdir.Check{
		Interval: health.DefaultInterval, Timeout: health.DefaultTimeout, StartInterval: health.DefaultStartInterval,
		Retries: health.DefaultRetries, Port: payload.TCP,
	}
	if payload.Retries != 0 {
		check.Retries = payload.Retries
	}
	for _, setting := range []struct {
		field string
		said  *sdk.Duration
		into  *time.Duration
	}{
		{"interval", payload.Interval, &check.Interval},
		{"timeout", payload.Timeout, &check.Timeout},
		{"startPeriod", payload.StartPeriod, &check.StartPeriod},
		{"startInterval", payload.StartInterval, &check.StartInterval},
	} {
		// As with containers, 0 means the default.
		if setting.said == nil || *setting.said == 0 {
			continue
		}
		if *setting.into = time.Duration(*setting.said); *setting.into < shortest {
			return nil, sdk.SpecFault("healthcheck."+setting.field, fmt.Errorf("it must be 0s or at least %s", shortest))
		}
	}
	if payload.TCP == 0 {
		var err error
		check.Path, check.Args, err = commandLine("healthcheck.", Payload{Command: payload.Command, Shell: payload.Shell}, spec)
		return check, err
	}
	for _, port := range spec.Ports {
		if network, err := network(port); err == nil && network == "tcp" && port.Target == uint32(payload.TCP) {
			check.Port = uint16(port.Published)
		}
	}
	return check, nil
}

// errUnhealthy is the error of a process whose health check fails.
var errUnhealthy = errors.New("unhealthy")

// unhealthy returns why a task that has ended was unhealthy.
func unhealthy(exit *taskdir.Exit) error {
	return fmt.Errorf("%w: %s", errUnhealthy, health.Unhealthy(convertHealth(exit.Unhealthy)))
}

// healthOf returns the result of a task's health check, or nil if it has none. For a task
// that has ended, it is only known whether the task was unhealthy.
func healthOf(dir taskdir.Dir, exit *taskdir.Exit) (*sdk.Health, error) {
	if exit != nil {
		return convertHealth(exit.Unhealthy), nil
	}
	found, err := readable(dir.Health())
	return convertHealth(found), err
}

func convertHealth(found *taskdir.Health) *sdk.Health {
	if found == nil {
		return nil
	}
	converted := &sdk.Health{
		State: sdk.HealthStarting, FailedChecks: found.Failed, Retries: found.Retries, ExitCode: found.Code, Output: found.Output,
	}
	switch {
	case found.Unhealthy():
		converted.State = sdk.HealthUnhealthy
	case found.Succeeded:
		converted.State = sdk.HealthHealthy
	}
	return converted
}

// Observe implements [sdk.Observer].
func (e *Executor) Observe(ctx context.Context, ref sdk.Ref, emit func(sdk.Observation) error) error {
	dir, err := e.find(ref.TaskID)
	if err != nil {
		return err
	}
	spec, err := dir.Spec()
	if errors.Is(err, taskdir.ErrDamaged) || err == nil && spec.Check == nil {
		return nil
	}
	if err != nil {
		return notFound(ref.TaskID, err)
	}
	var last *sdk.Status
	return notFound(ref.TaskID, every(ctx, healthPoll, func() (bool, error) {
		// Read before the lock is checked: the supervisor holds the lock before it begins
		// the task.
		begun, err := dir.Begun()
		if err != nil {
			return false, err
		}
		alive, err := dir.Locked()
		if err != nil || !alive {
			return begun, err
		}
		run, err := runOf(dir)
		if err != nil || run == nil {
			return false, err
		}
		now, err := status(dir, run, nil)
		if err != nil || proto.Equal(now, last) {
			return false, err
		}
		last = now
		return false, emit(health.Observation(now))
	}))
}

// every calls look now, and after each interval, until it is done.
func every(ctx context.Context, interval time.Duration, look func() (done bool, err error)) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		if done, err := look(); done || err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
