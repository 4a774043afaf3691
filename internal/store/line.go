package store

import "slices"

const (
	// smallGroup is the number of updates asked for together up to which they
	// go before bulk work, and smallFirst how many of them go so in one batch.
	smallGroup = 8
	smallFirst = 8
	// maxMisfits is how many updates in a row are tried for a batch that is
	// full. Others may still fit, because they change pages that are in it.
	maxMisfits = 16
	// maxProbes is how many updates at most are run only to learn where they
	// write; it bounds the time for which a commit waits for that.
	maxProbes = 20_000
)

// line is the updates that wait for a batch.
//
// A batch holds few pages, but any number of records in them: so of many
// updates, those that write into the same pages should go together. Where an
// update writes is known when it was run once. Hence those that did not fit are
// sorted by that place, and then are taken in this order to the last before the
// next are sorted, so that none waits forever. Those that write much are not run in
// vain: what they add is known from before, or from others of their group.
type line struct {
	fresh []*request // have not been run yet, in order of arrival
	sweep []*request // in order of their places
	next  []*request // for the next sweep
}

func (l *line) empty() bool { return len(l.fresh)+len(l.sweep)+len(l.next) == 0 }

func (l *line) all() []*request { return slices.Concat(l.sweep, l.next, l.fresh) }

// add appends updates that have just been asked for.
func (l *line) add(reqs []*request) { l.fresh = append(l.fresh, reqs...) }

// putBack gives a batch's updates back, to be the first of the next one.
func (l *line) putBack(b *batch) {
	members := make([]*request, len(b.members))
	for i, m := range b.members {
		members[i] = m.req
	}
	l.sweep = append(members, l.sweep...)
}

// fill moves updates from the line into a batch until no other fits, or there are
// limit. Those that have been given up are dropped.
func (l *line) fill(b *batch, limit int) {
	if len(l.sweep) == 0 {
		l.sweep, l.next = l.next, nil
		slices.SortStableFunc(l.sweep, func(p, q *request) int { return p.place.compare(q.place) })
	}
	// join reports whether the update is done with, as far as the line goes.
	join := func(r *request) bool {
		fits := true
		return !r.run(func() { fits = b.run(r) }) || fits
	}
	full := func() bool { return len(b.members) >= limit }

	l.fresh = l.small(full, join)

	var rest []*request
	misfits, i := 0, 0
	for ; i < len(l.sweep) && misfits < maxMisfits && !full(); i++ {
		if !b.tooHeavy(l.sweep[i]) && join(l.sweep[i]) {
			misfits = 0
		} else {
			rest = append(rest, l.sweep[i])
			misfits++
		}
	}
	// The misfits stay, at the front.
	l.sweep = l.sweep[i-len(rest):]
	copy(l.sweep, rest)

	probes := 0
	i = 0
	for ; i < len(l.fresh) && probes < maxProbes && !full(); i++ {
		if b.tooHeavy(l.fresh[i]) {
			l.next = append(l.next, l.fresh[i])
		} else if !join(l.fresh[i]) {
			l.next = append(l.next, l.fresh[i])
			probes++
		}
	}
	l.fresh = l.fresh[i:]
}

// small lets some updates join that are not a part of bulk work, and returns
// the fresh ones that remain.
func (l *line) small(full func() bool, join func(*request) bool) []*request {
	if len(l.sweep) == 0 {
		return l.fresh
	}
	var rest []*request
	n := 0
	for i, r := range l.fresh {
		if n == smallFirst || full() {
			return append(rest, l.fresh[i:]...)
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
