package store

import "slices"

const (
	// smallGroup is the number of updates asked for together up to which they
	// go before bulk work, and smallFirst how many of them go so in one batch.
	smallGroup = 8
	smallFirst = 8
	// maxSkipped is how many updates in a row are tried for a batch that is
	// full. Others may still fit, because they change pages that are in it.
	maxSkipped = 16
	// maxTrials is how many updates at most are run only to learn where they
	// write; it bounds the time for which a commit waits for that.
	maxTrials = 20_000
)

// backlog is the updates that wait for a batch.
//
// A batch holds few pages, but any number of records in them: so of many
// updates, those that write into the same pages should go together. Where an
// update writes is known when it was run once. Hence those that did not fit are
// sorted by that location, and then are taken in this order to the last before the
// next are sorted, so that none waits forever. Those that write much are not run in
// vain: what they add is known from before, or from others of their group.
type backlog struct {
	untried []*request // have not been run yet, in order of arrival
	sweep   []*request // in order of their places
	next    []*request // for the next sweep
}

func (l *backlog) empty() bool { return len(l.untried)+len(l.sweep)+len(l.next) == 0 }

func (l *backlog) all() []*request { return slices.Concat(l.sweep, l.next, l.untried) }

// add appends updates that have just been asked for.
func (l *backlog) add(reqs []*request) { l.untried = append(l.untried, reqs...) }

// putBack gives a batch's updates back, to be the first of the next one.
func (l *backlog) putBack(b *batch) {
	members := make([]*request, len(b.members))
	for i, m := range b.members {
		members[i] = m.req
	}
	l.sweep = append(members, l.sweep...)
}

// fill moves updates from the backlog into a batch until no other fits, or there are
// limit. Those that have been given up are dropped.
func (l *backlog) fill(b *batch, limit int) {
	if len(l.sweep) == 0 {
		l.sweep, l.next = l.next, nil
		slices.SortStableFunc(l.sweep, func(p, q *request) int { return p.firstWrite.compare(q.firstWrite) })
	}
	// join reports whether the update is done with, as far as the backlog goes.
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
	// The skipped ones stay, at the front.
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

// small lets some updates join that are not a part of bulk work, and returns
// the untried ones that remain.
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
