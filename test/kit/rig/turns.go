package rig

import (
	"fmt"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Turns returns an error if more of an update's tasks had their turn at the same
// time than its parallelism says: each from when it was made until it ran, and for a
// delay after that. All clocks are this machine's.
func Turns(tasks []*musterv1.Task, parallelism int, delay time.Duration) error {
	for _, t := range tasks {
		began := t.Meta.GetCreatedAt().AsTime()
		var updating []string
		for _, other := range tasks {
			through, ran := Reached(other, musterv1.TaskState_RUNNING)
			if !other.Meta.GetCreatedAt().AsTime().After(began) && (!ran || through.Add(delay).After(began)) {
				updating = append(updating, other.Name)
			}
		}
		if len(updating) > parallelism {
			return fmt.Errorf("when task %s was made %d tasks had their turn, at most %d should: %v", t.Name, len(updating), parallelism, updating)
		}
	}
	return nil
}

// Reached says when a task reached a state.
func Reached(t *musterv1.Task, s musterv1.TaskState) (time.Time, bool) {
	for _, at := range t.Timeline {
		if at.State == s {
			return at.At.AsTime(), true
		}
	}
	return time.Time{}, false
}
