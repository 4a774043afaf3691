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
	scenario, store string
	workers, tasks  int
}

// report prints medians and ranges, a line a figure.
func report(w io.Writer, results []*result) error {
	groups := map[group][]*result{}
	var order []group
	for _, r := range results {
		g := group{r.Scenario, r.Store, r.Workers, r.Tasks}
		if groups[g] == nil {
			order = append(order, g)
		}
		groups[g] = append(groups[g], r)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "SCENARIO\tSTORE\tWORKERS\tTASKS\tRUNS\tFIGURE\tMEDIAN\tLEAST\tMOST\tUNIT")
	for _, g := range order {
		for i, f := range groups[g][0].Figures {
			v := spread(groups[g], i)
			_, _ = fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%s\t%.4g\t%.4g\t%.4g\t%s\n",
				g.scenario, g.store, g.workers, g.tasks, len(groups[g]), f.Name, v.median, v.least, v.most, f.Unit)
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print report: %w", err)
	}
	for _, g := range order {
		if line := processes(groups[g]); line != "" {
			_, _ = fmt.Fprintf(w, "CPU seconds, %s on %s, %d workers, %d tasks: %s\n", g.scenario, g.store, g.workers, g.tasks, line)
		}
		last := groups[g][len(groups[g])-1].Counts
		for _, name := range slices.Sorted(maps.Keys(last)) {
			_, _ = fmt.Fprintf(w, "  %s in the last run: %v\n", name, last[name])
		}
	}
	return nil
}

// processes lists the median of what each process used.
func processes(rs []*result) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(rs[0].CPU)) {
		values := make([]float64, len(rs))
		for i, r := range rs {
			values[i] = r.CPU[name]
		}
		slices.Sort(values)
		parts = append(parts, fmt.Sprintf("%s %.2f", name, values[len(values)/2]))
	}
	return strings.Join(parts, ", ")
}

// figures are a median and a range.
type figures struct{ least, median, most float64 }

// spread is that of one figure, by its place.
func spread(rs []*result, place int) figures {
	values := make([]float64, len(rs))
	for i, r := range rs {
		values[i] = r.Figures[place].Value
	}
	slices.Sort(values)
	return figures{values[0], values[len(values)/2], values[len(values)-1]}
}
