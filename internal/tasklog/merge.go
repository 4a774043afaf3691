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

// Source calls emit with lines, in their order, until none are left or emit
// fails.
type Source func(ctx context.Context, emit func(*musterv1.LogMessage) error) error

// Merge runs sources, so many at a time, and calls send with their lines by the time
// at which they were written. It drops no line, and never changes the order within a
// source: a source whose lines come too early waits for the others. A source that has
// no line for as long as patience lasts is not waited for until it has one. Merge
// returns when all sources have ended; the first error ends all of them.
func Merge(ctx context.Context, sources []Source, parallel int, patience time.Duration, send func(*musterv1.LogMessage) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	m := &merge{ctx: ctx, pending: sources, running: &running, wake: make(chan struct{}, 1), room: max(1, window/max(1, min(parallel, len(sources))))}
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
			heap.Push(&m.ready, f)
		default:
			missing = missing || !f.silent
			still = append(still, f)
		}
	}
	clear(m.empty[len(still):])
	m.empty = still
	return missing, err
}

// take returns the earliest line.
func (m *merge) take() *musterv1.LogMessage {
	f, _ := heap.Pop(&m.ready).(*feed)
	line := f.head
	f.head = nil
	m.empty = append(m.empty, f)
	return line
}

// feeds is a heap by time.
type feeds []*feed

func (h feeds) Len() int      { return len(h) }
func (h feeds) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h feeds) Less(i, j int) bool {
	if !h[i].at.Equal(h[j].at) {
		return h[i].at.Before(h[j].at)
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
