package dispatcherd

import (
	"context"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

const (
	pulsePeriod = 500 * time.Millisecond
	// pulseStall is how long the pulse may stop before this process is taken not
	// to have run. It must be well under a worker's patience.
	pulseStall = 1500 * time.Millisecond
)

// pulse knows since when this process runs without a break. One that was
// paused (a stopped virtual machine, a debugger, a starved CPU) has heard no
// heartbeat meanwhile, and must not take that for its workers' silence.
type pulse struct {
	begin time.Time
	// last is when it last beat, and resumed when it first beat after the last
	// break; both since begin.
	last, resumed atomic.Int64
}

func newPulse(now time.Time) *pulse { return &pulse{begin: now} }

func (p *pulse) run(ctx context.Context, log *zap.Logger) error {
	t := time.NewTicker(pulsePeriod)
	defer t.Stop()
	// From New to Run may be any time.
	p.beat(time.Now())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if pause := p.beat(time.Now()); pause > 0 {
			log.Warn("this process did not run for a while; nodes are given time anew", zap.Duration("pause", pause))
		}
	}
}

// beat returns the length of the break that it ends, if there was one.
func (p *pulse) beat(now time.Time) (pause time.Duration) {
	at := now.Sub(p.begin)
	if p.broken(now) {
		pause = at - time.Duration(p.last.Load())
		p.resumed.Store(int64(at))
	}
	p.last.Store(int64(at))
	return pause
}

// since returns the moment from which on this process has run up to now.
func (p *pulse) since(now time.Time) time.Time {
	// In this order: whoever beats says that it resumed before it says that it
	// has beaten.
	if p.broken(now) {
		return now
	}
	return p.begin.Add(time.Duration(p.resumed.Load()))
}

func (p *pulse) broken(now time.Time) bool {
	return now.Sub(p.begin)-time.Duration(p.last.Load()) > pulseStall
}
