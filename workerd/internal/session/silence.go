package session

import (
	"sync/atomic"
	"time"
)

// mostUnanswered is how many heartbeats in a row a dispatcher may leave without a
// word before it is left: it has then been silent for as long as it lets a worker
// be.
const mostUnanswered = 2

// silence notices a dispatcher that hangs, which nothing else shows: its kernel
// takes in all that it is sent.
//
// It counts heartbeats and not time, so that a worker that did not run for a while
// does not take that for its dispatcher's silence.
type silence struct {
	// answered says that this dispatcher answers heartbeats at all.
	answered bool
	// busy is set while the reader deals with what it has read: what came since
	// then is yet to be read.
	busy atomic.Bool
	// beats is how many heartbeats have been sent since anything was heard.
	beats atomic.Int32
}

// beat counts a heartbeat that is about to be sent. It returns an error if those
// before it should have been answered.
func (s *silence) beat(period time.Duration) error {
	switch {
	case !s.answered || s.busy.Load():
		return nil
	case s.beats.Load() >= mostUnanswered:
		return &errSilent{"answer to heartbeats", period * mostUnanswered}
	}
	s.beats.Add(1)
	return nil
}

// hear notes that there was something to read.
func (s *silence) hear() {
	s.busy.Store(true)
	s.beats.Store(0)
}

// listen notes that the reader waits for more.
func (s *silence) listen() {
	s.beats.Store(0)
	s.busy.Store(false)
}
