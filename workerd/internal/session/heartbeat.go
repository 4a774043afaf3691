package session

import (
	"sync/atomic"
	"time"
)

// mostUnanswered is how many heartbeats in a row a dispatcher may leave unanswered
// before the worker leaves it. The dispatcher has then been silent for the time that
// it allows a worker.
const mostUnanswered = 2

// heartbeatMonitor notices a dispatcher that hangs. Nothing else shows it: the
// kernel of a hanging dispatcher still accepts everything that is sent.
//
// It counts heartbeats and does not measure time, because a worker that did not run
// for a while would take its own pause for the dispatcher's silence.
type heartbeatMonitor struct {
	// answered is set if this dispatcher answers heartbeats at all.
	answered bool
	// busy is set while the reader handles a message: later ones are not read yet.
	busy atomic.Bool
	// beats is how many heartbeats have been sent since anything was received.
	beats atomic.Int32
}

// beat counts a heartbeat that is about to be sent. It returns an error if the ones
// before it should have been answered.
func (m *heartbeatMonitor) beat(period time.Duration) error {
	switch {
	case !m.answered || m.busy.Load():
		return nil
	case m.beats.Load() >= mostUnanswered:
		return &errSilent{"answer to heartbeats", period * mostUnanswered}
	}
	m.beats.Add(1)
	return nil
}

// received notes that a message was received.
func (m *heartbeatMonitor) received() {
	m.busy.Store(true)
	m.beats.Store(0)
}

// reading notes that the reader waits for the next message.
func (m *heartbeatMonitor) reading() {
	m.beats.Store(0)
	m.busy.Store(false)
}
