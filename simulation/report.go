package simulation

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// most is how many violations are told.
const most = 20

// Report is what became of a run.
type Report struct {
	Script *Script
	// Took is the virtual time.
	Took time.Duration

	mu         sync.Mutex
	violations []string
	tail       string
	counts     map[string]int
	times      map[string]time.Duration
}

func newReport(s *Script) *Report {
	return &Report{Script: s, counts: map[string]int{}, times: map[string]time.Duration{}}
}

func (r *Report) violated(text string, tail func() string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.violations) == 0 {
		r.tail = tail()
	}
	if len(r.violations) < most {
		r.violations = append(r.violations, text)
	}
}

func (r *Report) count(what string, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[what] += n
}

func (r *Report) note(what string, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.times[what] = took
}

// Violations says what was wrong.
func (r *Report) Violations() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.violations)
}

// Counts returns how often what happened.
func (r *Report) Counts() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.counts)
}

// Tail returns the last events before the first violation.
func (r *Report) Tail() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tail
}

// String tells of the run in one line.
func (r *Report) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.Script.Size
	calls, faults := 0, 0
	for what, n := range r.counts {
		switch {
		case strings.HasPrefix(what, "fault: "):
			faults += n
		case strings.Contains(what, ": "):
			calls += n
		}
	}
	text := fmt.Sprintf("seed %d: %d workers, %d of each manager, %d calls, %d faults, %d tasks ran, %v of virtual time",
		r.Script.Seed, s.Workers, s.Managers, calls, faults, r.counts["tasks that ran"], r.Took.Round(time.Second))
	for _, what := range slices.Sorted(maps.Keys(r.times)) {
		text += fmt.Sprintf(", %v %s", r.times[what].Round(time.Second), what)
	}
	return text
}
