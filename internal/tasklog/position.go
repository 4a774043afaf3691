package tasklog

import (
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Position is how far the output of one task has been read, so that reading can
// resume without a line lost or doubled. Lines may have the same time.
type Position struct {
	at time.Time
	// same is how many lines of that time have been read.
	same int
}

// Since is the time from which reading resumes, itself included. It is false if
// nothing has been read that says a time.
func (p Position) Since() (time.Time, bool) { return p.at, !p.at.IsZero() }

// Note notes that a line has been read.
func (p *Position) Note(line *musterv1.LogMessage) {
	if !line.GetTimestamp().IsValid() {
		return
	}
	switch at := line.GetTimestamp().AsTime(); {
	case at.After(p.at):
		p.at, p.same = at, 1
	case at.Equal(p.at):
		p.same++
	}
}

// Resume returns a function that tells, of each line that is read from Since on,
// whether it has been read before.
func (p Position) Resume() (known func(*musterv1.LogMessage) bool) {
	return func(line *musterv1.LogMessage) bool {
		if p.at.IsZero() || !line.GetTimestamp().IsValid() {
			return false
		}
		at := line.GetTimestamp().AsTime()
		if at.Equal(p.at) && p.same > 0 {
			p.same--
			return true
		}
		return at.Before(p.at)
	}
}
