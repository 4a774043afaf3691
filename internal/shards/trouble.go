package shards

import (
	"sync"
	"time"

	"go.uber.org/zap"
)

// trouble tells of what goes wrong again and again, while the store is away for
// example: once when it begins, and once when it is over.
type trouble struct {
	log *zap.Logger

	mu    sync.Mutex
	since time.Time
	times int
}

// met notes that a deed went wrong.
func (x *trouble) met(deed string, err error, fields ...zap.Field) {
	x.mu.Lock()
	defer x.mu.Unlock()
	level := zap.DebugLevel
	if x.times == 0 {
		x.since, level = time.Now(), zap.WarnLevel
	}
	x.times++
	x.log.Log(level, "shards cannot be looked after; it is tried again until it works",
		append(fields, zap.String("deed", deed), zap.Error(err))...)
}

// over notes that all there was to do has worked.
func (x *trouble) over() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.times == 0 {
		return
	}
	x.log.Info("shards are looked after again", zap.Int("failures", x.times), zap.Duration("after", time.Since(x.since)))
	x.times = 0
}

// count returns how often something went wrong since it was last over.
func (x *trouble) count() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.times
}
