package tasklog

import (
	"container/heap"
	"context"
	"sync"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// window is how many lines Merge holds back, of all sources together, besides one of
// each source.
const window = 256

// A source whose clock is behind, or that lies, may have lines without end that all
// come before those of the others. A line that has waited for longer than maxHold is
// overdue. A source that keeps others overdue for longer than grace is late: the
// others no longer wait for it, and its lines queue behind the one that has waited
// longest. Each line counts as lineCost, so that a source without pauses is late too.
// Lines that are dated more than maxSkew in the future are never overdue.
const (
	maxHold  = 10 * time.Second
	grace    = time.Second / 2
	lineCost = 10 * time.Microsecond
	maxSkew  = time.Minute
)

// Source calls emit with lines, in their order, until none are left or emit
// fails.
type Source func(ctx context.Context, emit func(*musterv1.LogMessage) error) error

// Merge runs sources, so many at a time, and calls send with their lines by the time
// at which they were written. It drops no line, and never changes the order within a
// source: a source whose lines come too early waits for the others. A source that has
// no line until patience ends is not waited for until it has one. A source cannot
// keep the others from sending for long by the times of its lines: Merge stops waiting
// for a source that does, until its times have caught up. Merge returns when all
// sources have ended; the first error ends all of them.
func Merge(ctx context.Context, sources []Source, parallel int, patience time.Duration, send func(*musterv1.LogMessage) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	m := &merge{
		ctx: ctx, pending: sources, running: &running, wake: make(chan struct{}, 1),
		room: max(1, window/max(1, min(parallel, len(sources)))),
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
		case len(m.ready) > 0 && (!missing || m.ready[0].early):
			if err := send(m.take()); err != nil {
				return err
			}
			armed = false
			continue
		}
		if !armed {
			late.Reset(patience)
			armed = true
		}
		began := time.Now()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-m.wake:
		case <-late.C:
			armed = false
		}
		m.waited(time.Since(began))
		if !armed {
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
	// clock is how long lines have waited: for sources, and lineCost for each line that
	// was taken. A slow receiver holds no line back.
	clock time.Duration
	// reached is the time that a late feed must catch up with: the latest of the lines
	// that were taken, without those in the future.
	reached time.Time
}

// feed is one source that runs.
type feed struct {
	number int
	lines  chan *musterv1.LogMessage
	// err is set before lines is closed.
	err error
	// head is the next line, at its time, and key what it is sorted by.
	head    *musterv1.LogMessage
	at, key time.Time
	// silent says that the feed is not waited for.
	silent bool
	// since is merge.clock when head came. Future says that head is dated in the future,
	// early that the feed is late and head belongs before lines that were taken.
	since         time.Duration
	future, early bool
	// held is how long the feed has kept others overdue since it was last late. It is
	// late until so many of its lines as owed have come in order. Each time that it is
	// late it owes fine lines, which doubles.
	held       time.Duration
	owed, fine int
}

// start starts the next source.
func (m *merge) start() {
	source := m.pending[0]
	m.pending = m.pending[1:]
	f := &feed{number: m.started, fine: 1, lines: make(chan *musterv1.LogMessage, m.room)}
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
			f.head, f.silent = line, f.owed > 0
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

// add makes a feed that has a line ready. The line of a late feed waits for no feed that
// has none, and queues behind the line that has waited longest, which therefore comes
// first however many feeds are late.
func (m *merge) add(f *feed) {
	f.key, f.since, f.future = f.at, m.clock, f.at.After(time.Now().Add(maxSkew))
	if f.early = f.owed > 0 && f.at.Before(m.reached); f.owed > 0 {
		if !f.early {
			f.owed--
		}
		if longest := m.longest(); longest != nil && f.key.Before(longest.key) {
			f.key = longest.key
		}
	}
	heap.Push(&m.ready, f)
}

// take returns the earliest line.
func (m *merge) take() *musterv1.LogMessage {
	f, _ := heap.Pop(&m.ready).(*feed)
	m.clock += lineCost
	// A feed whose own line has waited longest keeps no other.
	if longest := m.longest(); longest != nil && longest.since < f.since {
		m.charge(f, longest, lineCost)
	}
	if !f.future {
		m.reach(f.at)
	}
	line := f.head
	f.head = nil
	m.empty = append(m.empty, f)
	return line
}

// waited notes that lines have waited for the feeds that have none here.
func (m *merge) waited(d time.Duration) {
	m.clock += d
	longest := m.longest()
	if longest == nil {
		return
	}
	for _, f := range m.empty {
		if !f.silent {
			m.charge(f, longest, d)
		}
	}
}

// longest returns the feed whose line has waited longest, nil if there is none.
func (m *merge) longest() *feed {
	var longest *feed
	for _, f := range m.ready {
		if !f.future && (longest == nil || f.since < longest.since) {
			longest = f
		}
	}
	return longest
}

// charge notes that a feed has kept the line of another waiting for so long.
func (m *merge) charge(f, longest *feed, d time.Duration) {
	overdue := m.clock - longest.since - maxHold
	if f.held += min(d, max(0, overdue)); f.held > grace {
		f.silent, f.held, f.owed, f.fine = true, 0, f.fine, 2*f.fine
		m.reach(longest.at)
	}
}

func (m *merge) reach(at time.Time) {
	if at.After(m.reached) {
		m.reached = at
	}
}

// feeds is a heap by time.
type feeds []*feed

func (h feeds) Len() int      { return len(h) }
func (h feeds) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h feeds) Less(i, j int) bool {
	if !h[i].key.Equal(h[j].key) {
		return h[i].key.Before(h[j].key)
	}
	if late := h[i].owed > 0; late != (h[j].owed > 0) {
		return !late
	} else if late && h[i].since != h[j].since {
		return h[i].since < h[j].since
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
