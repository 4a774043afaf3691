package store

import "slices"

const (
	// smallGroup is the largest number of updates in one call that have priority over
	// bulk work. smallFirst is how many such updates have priority in one batch.
	smallGroup = 8
	smallFirst = 8
	// maxSkipped is how many consecutive updates may not fit into a batch before it is
	// taken to be full. Later ones may fit because they change pages of the batch.
	maxSkipped = 16
	// maxTrials bounds how many updates are run only to learn where they write, and so
	// how long a commit waits for that.
	maxTrials = 20_000
)

// backlog holds the updates that wait for a batch.
//
// A batch has room for few pages, but for any number of records in these pages. So
// updates that write to the same pages should share a batch. The store learns where an
// update writes by running it. Updates that did not fit are sorted by this location
// and processed in this order. All of them are processed before the next ones are
// sorted, so that none waits forever. Updates that write many records are run only if
// they are likely to fit: their size is known from an earlier run, or from other
// updates of their group.
type backlog struct {
	untried []*request // not run yet, in order of arrival
	sweep   []*request // sorted by location
	next    []*request // for the next sweep
}

func (l *backlog) empty() bool { return len(l.untried)+len(l.sweep)+len(l.next) == 0 }

func (l *backlog) all() []*request { return slices.Concat(l.sweep, l.next, l.untried) }

// add appends new updates.
func (l *backlog) add(reqs []*request) { l.untried = append(l.untried, reqs...) }

// putBack puts the updates of a batch first again.
func (l *backlog) putBack(b *batch) {
	members := make([]*request, len(b.members))
	for i, m := range b.members {
		members[i] = m.req
	}
	l.sweep = append(members, l.sweep...)
}

// fill moves updates from the backlog into a batch until it is full or has limit
// members. It drops updates whose caller no longer waits.
func (l *backlog) fill(b *batch, limit int) {
	if len(l.sweep) == 0 {
		l.sweep, l.next = l.next, nil
		slices.SortStableFunc(l.sweep, func(p, q *request) int { return p.firstWrite.compare(q.firstWrite) })
	}
	// join reports whether the update can leave the backlog.
	join := func(r *request) bool {
		fits := true
		return !r.run(func() { fits = b.run(r) }) || fits
	}
	full := func() bool { return len(b.members) >= limit }

	l.untried = l.small(full, join)

	var rest []*request
	skipped, i := 0, 0
	for ; i < len(l.sweep) && skipped < maxSkipped && !full(); i++ {
		if !b.tooHeavy(l.sweep[i]) && join(l.sweep[i]) {
			skipped = 0
		} else {
			rest = append(rest, l.sweep[i])
			skipped++
		}
	}
	// Skipped updates stay at the front.
	l.sweep = l.sweep[i-len(rest):]
	copy(l.sweep, rest)

	trials := 0
	i = 0
	for ; i < len(l.untried) && trials < maxTrials && !full(); i++ {
		if b.tooHeavy(l.untried[i]) {
			l.next = append(l.next, l.untried[i])
		} else if !join(l.untried[i]) {
			l.next = append(l.next, l.untried[i])
			trials++
		}
	}
	l.untried = l.untried[i:]
}

// small adds some updates that are not part of bulk work, and returns the remaining
// untried updates.
func (l *backlog) small(full func() bool, join func(*request) bool) []*request {
	if len(l.sweep) == 0 {
		return l.untried
	}
	var rest []*request
	n := 0
	for i, r := range l.untried {
		if n == smallFirst || full() {
			return append(rest, l.untried[i:]...)
		}
		if len(r.group.requests) > smallGroup {
			rest = append(rest, r)
			continue
		}
		n++
		if !join(r) {
			l.next = append(l.next, r)
		}
	}
	return rest
}
