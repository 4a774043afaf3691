//go:build linux

package process

import "time"

// SetKillTime lets a test wait less for a supervisor that does not answer.
func (e *Executor) SetKillTime(span time.Duration) { e.killTime = span }
