package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"text/tabwriter"
	"time"
)

// report is what was done and found.
type report struct {
	mu sync.Mutex

	Seed       uint64                           `json:"seed"`
	Duration   float64                          `json:"durationSeconds"`
	Replicas   int                              `json:"replicas"`
	Workers    int                              `json:"workers"`
	Operations map[string]map[string]*operation `json:"operations"`
	Faults     map[string]*faults               `json:"faults"`
	// Checks is how often the cluster was looked at while faults came.
	Checks int `json:"checks"`
	// Settled is how long it took after the last fault until all was as it should
	// be, in seconds.
	Settled    float64  `json:"settledSeconds"`
	Violations []string `json:"violations"`
	// more is how many violations were not kept.
	more int
}

// operation counts operations of one kind that ended in one way.
type operation struct {
	Count   int     `json:"count"`
	Median  float64 `json:"medianSeconds"`
	Slowest float64 `json:"slowestSeconds"`
	took    []time.Duration
}

// faults counts faults of one kind.
type faults struct {
	Count   int     `json:"count"`
	Seconds float64 `json:"seconds"`
}

func newReport(o options) *report {
	return &report{
		Seed: o.seed, Duration: o.duration.Seconds(), Replicas: o.replicas, Workers: o.workers + 1,
		Operations: map[string]map[string]*operation{}, Faults: map[string]*faults{}, Violations: []string{},
	}
}

func (r *report) operation(kind, end string, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Operations[kind] == nil {
		r.Operations[kind] = map[string]*operation{}
	}
	if r.Operations[kind][end] == nil {
		r.Operations[kind][end] = &operation{}
	}
	r.Operations[kind][end].took = append(r.Operations[kind][end].took, took)
}

func (r *report) fault(kind string, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Faults[kind] == nil {
		r.Faults[kind] = &faults{}
	}
	r.Faults[kind].Count++
	r.Faults[kind].Seconds += took.Seconds()
}

func (r *report) checked() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Checks++
}

// mostViolations is how many violations are kept: the first ones tell most.
const mostViolations = 50

func (r *report) violated(format string, a ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := fmt.Sprintf(format, a...)
	fmt.Printf("%s VIOLATION %s\n", time.Now().Format("15:04:05.000"), text)
	if len(r.Violations) == mostViolations {
		r.more++
		return
	}
	r.Violations = append(r.Violations, text)
}

// finish prints the report, and writes it to a file if one is named. It reports
// whether nothing was violated.
func (r *report) finish(path string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "\nOPERATION\tEND\tCOUNT\tMEDIAN\tSLOWEST")
	for _, kind := range slices.Sorted(maps.Keys(r.Operations)) {
		for _, end := range slices.Sorted(maps.Keys(r.Operations[kind])) {
			o := r.Operations[kind][end]
			slices.Sort(o.took)
			o.Count = len(o.took)
			median, slowest := o.took[len(o.took)/2], o.took[len(o.took)-1]
			o.Median, o.Slowest = median.Seconds(), slowest.Seconds()
			_, _ = fmt.Fprintf(w, "%s\t%s\t%d\t%v\t%v\n", kind, end, o.Count, median.Round(time.Millisecond), slowest.Round(time.Millisecond))
		}
	}
	_, _ = fmt.Fprintln(w, "\nFAULT\tCOUNT\tSECONDS")
	for _, kind := range slices.Sorted(maps.Keys(r.Faults)) {
		_, _ = fmt.Fprintf(w, "%s\t%d\t%.0f\n", kind, r.Faults[kind].Count, r.Faults[kind].Seconds)
	}
	_ = w.Flush()
	fmt.Printf("\nseed %d: %d checks, settled %.1f s after the last fault, %d violations\n", r.Seed, r.Checks, r.Settled, len(r.Violations)+r.more)
	for _, v := range r.Violations {
		fmt.Println("  " + v)
	}
	if path != "" {
		b, err := json.MarshalIndent(r, "", "  ")
		if err == nil {
			err = os.WriteFile(path, append(b, '\n'), 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "chaos: write report:", err)
			return false
		}
	}
	return len(r.Violations) == 0
}
