package orchestratord

import (
	"container/heap"
	"time"
)

// queue holds services and when each is looked at, soonest first. A
// service is in it once at most.
type queue struct {
	items []*queued
	byID  map[string]*queued
}

type queued struct {
	service string
	at      time.Time
	index   int
}

func newQueue() *queue { return &queue{byID: map[string]*queued{}} }

// add asks for a look at a service at a time, or sooner if that was asked for
// before.
func (q *queue) add(service string, at time.Time) {
	item := q.byID[service]
	switch {
	case item == nil:
		item = &queued{service: service, at: at}
		q.byID[service] = item
		heap.Push((*byTime)(q), item)
	case at.Before(item.at):
		item.at = at
		heap.Fix((*byTime)(q), item.index)
	}
}

// remove forgets a service.
func (q *queue) remove(service string) {
	if item := q.byID[service]; item != nil {
		heap.Remove((*byTime)(q), item.index)
		delete(q.byID, service)
	}
}

// next returns when the next look is due.
func (q *queue) next() (time.Time, bool) {
	if len(q.items) == 0 {
		return time.Time{}, false
	}
	return q.items[0].at, true
}

// pop takes a service out whose look is due.
func (q *queue) pop(now time.Time) (string, bool) {
	if len(q.items) == 0 || q.items[0].at.After(now) {
		return "", false
	}
	item := heap.Pop((*byTime)(q)).(*queued)
	delete(q.byID, item.service)
	return item.service, true
}

// byTime makes a queue a heap.
type byTime queue

func (q *byTime) Len() int           { return len(q.items) }
func (q *byTime) Less(i, j int) bool { return q.items[i].at.Before(q.items[j].at) }
func (q *byTime) Swap(i, j int) {
	q.items[i], q.items[j] = q.items[j], q.items[i]
	q.items[i].index, q.items[j].index = i, j
}
func (q *byTime) Push(x any) {
	item := x.(*queued)
	item.index = len(q.items)
	q.items = append(q.items, item)
}
func (q *byTime) Pop() any {
	last := len(q.items) - 1
	item := q.items[last]
	q.items[last] = nil
	q.items = q.items[:last]
	return item
}
