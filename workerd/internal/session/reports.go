package session

import (
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
)

const (
	// settledLinger is how long a status waits for others before it is sent, if all
	// tasks that have changed are settled: a few that were assigned together are
	// then one report and one commit of the dispatcher's.
	settledLinger = time.Millisecond
	// mixedLinger is the same if others have changed and are not settled: of many
	// that were assigned together, most settle within this time.
	mixedLinger = 10 * time.Millisecond
	// passingLinger is the same if none is settled: a task that starts at once is
	// reported once, when it runs, and not four times.
	passingLinger = 50 * time.Millisecond
	// mostReportStatuses and mostReportBytes bound a report, far below the 4 MiB that
	// gRPC lets through. 1000 statuses of usual size have 300 KB, and none has more than
	// 64 KiB.
	mostReportStatuses = 1000
	mostReportBytes    = 1 << 20
)

// Reports knows which tasks have something new to report. It holds no statuses: a
// report holds what is true when it is sent.
//
// One report is under way at a time. Changes that come before it is acknowledged
// are sent together in the next, so a slow dispatcher gets fewer and larger
// reports.
type Reports struct {
	// wake has a value when the writer should look again.
	wake chan struct{}

	mu sync.Mutex
	// dirty holds the tasks that have something new, and whether each is settled.
	dirty map[string]bool
	// passing is the number of dirty tasks that are not settled.
	passing int
	// due is when the dirty tasks must be reported.
	due time.Time
	// sequence numbers the newest report of this session, acked the newest that
	// was acknowledged.
	sequence, acked uint64
	sentAt          time.Time
}

// NewReports returns Reports without tasks.
func NewReports() *Reports {
	return &Reports{wake: make(chan struct{}, 1), dirty: map[string]bool{}}
}

// begin has all tasks reported again, to a dispatcher that knows nothing.
func (r *Reports) begin(tasks []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sequence, r.acked = 0, 0
	r.due = time.Now()
	for _, id := range tasks {
		r.mark(id, true)
	}
}

// mark makes a task dirty. The caller holds mu.
func (r *Reports) mark(id string, settled bool) {
	if was, ok := r.dirty[id]; ok && !was {
		r.passing--
	}
	if !settled {
		r.passing++
	}
	r.dirty[id] = settled
}

// waiting returns the number of tasks that have something new.
func (r *Reports) waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.dirty)
}

// Changed notes that there is something new to report of a task. Settled means that
// the status will probably hold for a while.
func (r *Reports) Changed(id string, settled bool) {
	now := time.Now()
	r.mu.Lock()
	first := len(r.dirty) == 0
	r.mark(id, settled)
	due := now.Add(passingLinger)
	switch {
	case r.passing == 0:
		due = now.Add(settledLinger)
	case settled:
		due = now.Add(mixedLinger)
	}
	sooner := first || due.Before(r.due)
	if sooner {
		r.due = due
	}
	waiting := r.sequence != r.acked
	r.mu.Unlock()
	if sooner && !waiting {
		r.poke()
	}
}

// poke makes the writer look again.
func (r *Reports) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// ack notes that the dispatcher has stored a report.
func (r *Reports) ack(sequence uint64) {
	r.mu.Lock()
	if sequence > r.acked && sequence <= r.sequence {
		r.acked = sequence
	}
	r.mu.Unlock()
	r.poke()
}

// next returns the time until a report is due, or until the acknowledgement of the
// last one is overdue. It returns false if there is neither.
func (r *Reports) next(now time.Time, ackTimeout time.Duration) (wait time.Duration, acknowledgement, something bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sequence != r.acked {
		return max(r.sentAt.Add(ackTimeout).Sub(now), 0), true, true
	}
	if len(r.dirty) == 0 {
		return 0, false, false
	}
	return max(r.due.Sub(now), 0), false, true
}

// take returns the next report, or nil if there is nothing in it.
func (r *Reports) take(now time.Time, tasks Tasks) *dispatcherv1.StatusReport {
	r.mu.Lock()
	taken := make(map[string]bool, min(len(r.dirty), mostReportStatuses))
	for id, settled := range r.dirty {
		if len(taken) == mostReportStatuses {
			break
		}
		taken[id] = settled
		delete(r.dirty, id)
		if !settled {
			r.passing--
		}
	}
	r.mu.Unlock()

	report, size := &dispatcherv1.StatusReport{}, 0
	for id := range taken {
		s := tasks.Status(id)
		// A status in the report takes some bytes more than its own size.
		if size += proto.Size(s) + 8; size > mostReportBytes-16 && len(report.Statuses) > 0 {
			break
		}
		delete(taken, id)
		if s != nil {
			report.Statuses = append(report.Statuses, s)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// The statuses that are left over follow without a further wait.
	r.due = now
	for id, settled := range taken {
		if _, changed := r.dirty[id]; !changed {
			r.mark(id, settled)
		}
	}
	if len(report.Statuses) == 0 {
		return nil
	}
	r.sequence++
	r.sentAt = now
	report.Sequence = r.sequence
	return report
}
