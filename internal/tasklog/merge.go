package tasklog

import (
	"container/heap"
	"container/list"
	"context"
	"sync"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// window is how many lines Merge holds back, of all sources together, besides one of
// each source.
const window = 256

// A source whose clock is behind, or that lies, may have lines without end that all
// come before those of the others. A line that has waited for longer than maxHold,
// the time that send takes left out, or for maxAhead other lines has waited too
// long. A source that has sent more than window lines past such lines is no longer
// trusted: it takes turns with the others. Lines that are dated more than maxSkew in
// the future wait as long as there are others.
const (
	maxHold  = 10 * time.Second
	maxAhead = 1 << 20
	maxSkew  = time.Minute
)

// Source calls emit with lines, in their order, until none are left or emit
// fails.
type Source func(ctx context.Context, emit func(*musterv1.LogMessage) error) error

// Merge runs sources, so many at a time, and calls send with their lines by the time
// at which they were written. It drops no line, and never changes the order within a
// source: a source whose lines come too early waits for the others. A source that has
// no line until patience ends is not waited for until it has one. A source
// cannot keep the others from sending for long by the times of its lines. Merge
// returns when all sources have ended; the first error ends all of them.
func Merge(ctx context.Context, sources []Source, parallel int, patience time.Duration, send func(*musterv1.LogMessage) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	m := &merge{
		ctx: ctx, pending: sources, running: &running, wake: make(chan struct{}, 1),
		room: max(1, window/max(1, min(parallel, len(sources)))), began: time.Now(),
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	armed := true
	for {
		for len(m.pending) > 0 && len(m.empty)+len(m.ready) < parallel {
			m.start()
		}
		missing, err := m.fill()
		switch {
		case err != nil:
			return err
		case len(m.empty)+len(m.ready) == 0:
			if len(m.pending) == 0 {
				return nil
			}
			continue
		case !missing && len(m.ready) > 0:
			if err := m.send(send, m.take()); err != nil {
				return err
			}
			armed = false
			continue
		}
		if !armed {
			late.Reset(patience)
			armed = true
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-m.wake:
		case <-late.C:
			armed = false
			for _, f := range m.empty {
				f.silent = true
			}
		}
	}
}

// merge is the state of one call of Merge.
type merge struct {
	ctx     context.Context
	pending []Source
	running *sync.WaitGroup
	// wake has room for one: some feed has a line, or has ended.
	wake chan struct{}
	// room is how many lines a feed holds besides its first.
	room int
	// started numbers the feeds.
	started int
	// empty are the feeds that are open and have no line here, ready those that have
	// one, the earliest first.
	empty []*feed
	ready feeds
	// waiting are the feeds in ready by how long they are there, the longest first. It
	// lacks those whose line is dated in the future.
	waiting list.List
	// began is when Merge was called, sending how long send has taken since, and sent
	// the number of lines that were taken.
	began   time.Time
	sending time.Duration
	sent    int
}

// feed is one source that runs.
type feed struct {
	number int
	lines  chan *musterv1.LogMessage
	// err is set before lines is closed.
	err error
	// head is the next line, and at the time that it is sorted by.
	head *musterv1.LogMessage
	at   time.Time
	// silent says that the feed is not waited for.
	silent bool
	// place is the feed's place in waiting, nil if it has none; since and sentBefore
	// are merge.now and merge.sent when it got there.
	place      *list.Element
	since      time.Duration
	sentBefore int
	// ahead is how many lines the feed has sent while another one had waited too
	// long, and untrusted says that these are too many.
	ahead     int
	untrusted bool
}

// start starts the next source.
func (m *merge) start() {
	source := m.pending[0]
	m.pending = m.pending[1:]
	f := &feed{number: m.started, lines: make(chan *musterv1.LogMessage, m.room)}
	m.started++
	m.empty = append(m.empty, f)
	m.running.Go(func() {
		f.err = source(m.ctx, func(line *musterv1.LogMessage) error {
			select {
			case f.lines <- line:
				m.nudge()
				return nil
			case <-m.ctx.Done():
				return context.Cause(m.ctx)
			}
		})
		close(f.lines)
		m.nudge()
	})
}

func (m *merge) nudge() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// fill takes the next line of feeds that have none here, and drops those that have
// ended. Missing says that there is one to wait for.
func (m *merge) fill() (missing bool, err error) {
	still := m.empty[:0]
	for _, f := range m.empty {
		select {
		case line, open := <-f.lines:
			if !open {
				if f.err != nil && err == nil {
					err = f.err
				}
				continue
			}
			f.head, f.silent = line, false
			// A line without a time comes right after the one before it.
			if line.GetTimestamp().IsValid() {
				f.at = line.GetTimestamp().AsTime()
			}
			m.add(f)
		default:
			missing = missing || !f.silent
			still = append(still, f)
		}
	}
	clear(m.empty[len(still):])
	m.empty = still
	return missing, err
}

// add makes a feed that has a line ready.
func (m *merge) add(f *feed) {
	if f.untrusted {
		f.at = m.turn(f.at)
	}
	if f.at.Before(time.Now().Add(maxSkew)) {
		f.since, f.sentBefore = m.now(), m.sent
		f.place = m.waiting.PushBack(f)
	}
	heap.Push(&m.ready, f)
}

// turn returns the time by which the line of an untrusted feed is sorted: its own, or
// that of the earliest line of a trusted feed, which then comes first.
func (m *merge) turn(at time.Time) time.Time {
	var first *feed
	for _, f := range m.ready {
		if !f.untrusted && f.place != nil && (first == nil || f.at.Before(first.at)) {
			first = f
		}
	}
	if first != nil && at.Before(first.at) {
		return first.at
	}
	return at
}

// take returns the earliest line.
func (m *merge) take() *musterv1.LogMessage {
	f, _ := heap.Pop(&m.ready).(*feed)
	if m.heldTooLong(f) {
		f.ahead++
		f.untrusted = f.ahead > window
	}
	if f.place != nil {
		m.waiting.Remove(f.place)
		f.place = nil
	}
	m.sent++
	line := f.head
	f.head = nil
	m.empty = append(m.empty, f)
	return line
}

// heldTooLong reports whether a line of another feed has waited too long.
func (m *merge) heldTooLong(f *feed) bool {
	front := m.waiting.Front()
	if front == nil || front == f.place {
		return false
	}
	longest, ok := front.Value.(*feed)
	return ok && (m.now()-longest.since > maxHold || m.sent-longest.sentBefore > maxAhead)
}

// now is the time since Merge was called, without the time that send took: a slow
// receiver holds no line back.
func (m *merge) now() time.Duration { return time.Since(m.began) - m.sending }

// send calls send, and notes how long it takes.
func (m *merge) send(send func(*musterv1.LogMessage) error, line *musterv1.LogMessage) error {
	began := time.Now()
	defer func() { m.sending += time.Since(began) }()
	return send(line)
}

// feeds is a heap by time.
type feeds []*feed

func (h feeds) Len() int      { return len(h) }
func (h feeds) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h feeds) Less(i, j int) bool {
	if !h[i].at.Equal(h[j].at) {
		return h[i].at.Before(h[j].at)
	}
	if h[i].untrusted != h[j].untrusted {
		return h[j].untrusted
	}
	return h[i].number < h[j].number
}

func (h *feeds) Push(x any) {
	if f, ok := x.(*feed); ok {
		*h = append(*h, f)
	}
}

func (h *feeds) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return last
}
