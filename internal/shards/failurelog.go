package shards

import (
	"sync"
	"time"

	"go.uber.org/zap"
)

// failureLog logs failures that repeat, for example while the store is unavailable:
// one warning at the first failure, and one line when everything works again.
type failureLog struct {
	log *zap.Logger

	mu       sync.Mutex
	since    time.Time
	failures int
}

// failed records that an action failed.
func (l *failureLog) failed(action string, err error, fields ...zap.Field) {
	l.mu.Lock()
	defer l.mu.Unlock()
	level := zap.DebugLevel
	if l.failures == 0 {
		l.since, level = time.Now(), zap.WarnLevel
	}
	l.failures++
	l.log.Log(level, "failed to maintain shard locks; retrying",
		append(fields, zap.String("action", action), zap.Error(err))...)
}

// recovered records that no action fails any longer.
func (l *failureLog) recovered() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failures == 0 {
		return
	}
	l.log.Info("shard locks are maintained again", zap.Int("failures", l.failures), zap.Duration("after", time.Since(l.since)))
	l.failures = 0
}

// count returns the number of failures since the last recovery.
func (l *failureLog) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failures
}
