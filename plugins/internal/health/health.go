// Package health describes the results of health checks, in the same words for every
// executor.
package health

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/musterhq/muster/plugins/sdk"
)

// The defaults of Docker's health checks. The start period is 0.
const (
	DefaultInterval      = 30 * time.Second
	DefaultTimeout       = 30 * time.Second
	DefaultStartInterval = 5 * time.Second
	DefaultRetries       = 3
)

// maxOutput is how many bytes of a check's output are reported.
const maxOutput = 200

// Output returns the output of a check on one line, clipped, without characters that a
// terminal acts on.
func Output(output string) string {
	output = strings.Map(func(r rune) rune {
		if !unicode.IsSpace(r) && unicode.In(r, unicode.Cc, unicode.Cf) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(output, "\uFFFD"))
	output = strings.Join(strings.Fields(output), " ")
	if len(output) > maxOutput {
		output = strings.ToValidUTF8(output[:maxOutput], "") + "..."
	}
	return output
}

// Unhealthy describes the last check of a task that is unhealthy.
func Unhealthy(health *sdk.Health) string {
	if health.GetOutput() == "" {
		return fmt.Sprintf("its health check ended with exit code %d and wrote no output", health.GetExitCode())
	}
	return fmt.Sprintf("its health check ended with exit code %d: %s", health.GetExitCode(), health.GetOutput())
}

// Observation describes a task that has a health check and has not ended.
func Observation(status *sdk.Status) sdk.Observation {
	o := sdk.Observation{Status: status}
	health := status.GetHealth()
	if health.GetState() == sdk.HealthHealthy || health == nil {
		return o
	}
	o.Message = "waiting for the health check"
	switch {
	case health.GetExitCode() == 0:
	case health.GetFailedChecks() == 0:
		// Failures within the start period do not count.
		o.Error = "the last health check failed: " + failure(health)
	default:
		o.Error = fmt.Sprintf("%d of %d health checks failed: %s", health.GetFailedChecks(), health.GetRetries(), failure(health))
	}
	return o
}

// failure describes a check that has failed.
func failure(health *sdk.Health) string {
	switch {
	case health.GetOutput() == "":
		return fmt.Sprintf("exit code %d, no output", health.GetExitCode())
	case health.GetExitCode() < 0:
		// It could not be run, or took too long. The output says which.
		return health.GetOutput()
	}
	return fmt.Sprintf("exit code %d: %s", health.GetExitCode(), health.GetOutput())
}
