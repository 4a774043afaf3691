package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// group is what the runs of one measurement have in common.
type group struct {
	store          string
	workers, tasks int
}

// report prints medians and ranges, a line a measurement.
func report(w io.Writer, results []*result) error {
	groups := map[group][]*result{}
	var order []group
	for _, r := range results {
		g := group{r.Store, r.Workers, r.Tasks}
		if groups[g] == nil {
			order = append(order, g)
		}
		groups[g] = append(groups[g], r)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "STORE\tWORKERS\tTASKS\tFIRST RUNNING\tALL RUNNING\tTASKS/S\tSTOPPED\tCPU MANAGERS\tCPU CONSUL\tCPU WORKERS\tPEAK MEMORY")
	for _, g := range order {
		rs := groups[g]
		all := spread(rs, func(r *result) float64 { return r.All })
		managers := func(r *result) (sum float64) {
			for name, cpu := range r.CPU {
				if name != "consul" && name != "workers" {
					sum += cpu
				}
			}
			return sum
		}
		memory := func(r *result) (sum float64) {
			for name, m := range r.Memory {
				if name != "workers" {
					sum += float64(m)
				}
			}
			return sum
		}
		_, _ = fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%s\t%.0f\t%s\t%s\t%s\t%s\t%.0f MiB\n", g.store, g.workers, g.tasks,
			spread(rs, func(r *result) float64 { return r.First }), all, float64(g.tasks)/all.median,
			spread(rs, func(r *result) float64 { return r.Stop }), spread(rs, managers),
			spread(rs, func(r *result) float64 { return r.CPU["consul"] }), spread(rs, func(r *result) float64 { return r.CPU["workers"] }),
			spread(rs, memory).median/(1<<20))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print report: %w", err)
	}
	_, _ = fmt.Fprintln(w, "\nMedian [least - most] in seconds. CPU is CPU seconds from the create call until all tasks run.")
	for _, g := range order {
		var parts []string
		for _, name := range slices.Sorted(maps.Keys(groups[g][0].CPU)) {
			parts = append(parts, fmt.Sprintf("%s %.2f", name, spread(groups[g], func(r *result) float64 { return r.CPU[name] }).median))
		}
		_, _ = fmt.Fprintf(w, "CPU, %s, %d tasks: %s\n", g.store, g.tasks, strings.Join(parts, ", "))
	}
	return nil
}

// figures are a median and a range.
type figures struct{ least, median, most float64 }

func spread(rs []*result, of func(*result) float64) figures {
	values := make([]float64, len(rs))
	for i, r := range rs {
		values[i] = of(r)
	}
	slices.Sort(values)
	return figures{values[0], values[len(values)/2], values[len(values)-1]}
}

func (f figures) String() string { return fmt.Sprintf("%.3f [%.3f - %.3f]", f.median, f.least, f.most) }
