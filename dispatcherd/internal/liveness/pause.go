package liveness

import (
	"context"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

const (
	tickPeriod = 500 * time.Millisecond
	// longestTick is the time between two ticks from which on the process counts as
	// paused. It must be well below a worker's patience.
	longestTick = 1500 * time.Millisecond
)

// PauseDetector knows since when this process has run without a pause. A process
// that was paused (a stopped virtual machine, a debugger, a starved CPU) has heard
// no heartbeats, and must not take that for its workers' silence.
type PauseDetector struct {
	log   *zap.Logger
	begin time.Time
	// last is the time of the last tick, and resumed that of the first tick after
	// the last pause, both since begin.
	last, resumed atomic.Int64
}

// NewPauseDetector returns a detector. Run makes it tick.
func NewPauseDetector(log *zap.Logger) *PauseDetector {
	return &PauseDetector{log: log, begin: time.Now()}
}

// Run ticks until ctx ends.
func (p *PauseDetector) Run(ctx context.Context) error {
	t := time.NewTicker(tickPeriod)
	defer t.Stop()
	// The time between NewPauseDetector and Run is not a pause.
	p.tick(time.Now())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if pause := p.tick(time.Now()); pause > 0 {
			p.log.Warn("process was paused; extending heartbeat deadlines", zap.Duration("pause", pause))
		}
	}
}

// Suspect makes the process count as paused until the next tick.
func (p *PauseDetector) Suspect() { p.last.Store(0) }

// tick returns the length of the pause that it ends, if there was one.
func (p *PauseDetector) tick(now time.Time) (pause time.Duration) {
	at := now.Sub(p.begin)
	if p.paused(now) {
		pause = at - time.Duration(p.last.Load())
		p.resumed.Store(int64(at))
	}
	p.last.Store(int64(at))
	return pause
}

// runningSince returns the time since when the process has run without a pause.
func (p *PauseDetector) runningSince(now time.Time) time.Time {
	// The order matters: tick stores resumed before last.
	if p.paused(now) {
		return now
	}
	return p.begin.Add(time.Duration(p.resumed.Load()))
}

func (p *PauseDetector) paused(now time.Time) bool {
	return now.Sub(p.begin)-time.Duration(p.last.Load()) > longestTick
}
