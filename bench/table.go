package main

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

//go:embed swarmkit.json
var swarmkit []byte

// baseline is what was measured of SwarmKit.
type baseline struct {
	What     string `json:"what"`
	Measured string `json:"measured"`
	Figures  []struct {
		Scenario string  `json:"scenario"`
		Workers  int     `json:"workers"`
		Tasks    int     `json:"tasks"`
		Figure   string  `json:"figure"`
		Least    float64 `json:"least"`
		Median   float64 `json:"median"`
		Most     float64 `json:"most"`
	} `json:"figures"`
}

// row is one figure, on each store.
type row struct {
	scenario       string
	workers, tasks int
	name, unit     string
}

// Marks of what this program writes into a page.
const (
	tableBegins = "<!-- measured: begin -->"
	tableEnds   = "<!-- measured: end -->"
)

// document puts the table into a page between its marks, and charts beside it.
func (m *measurements) document(path string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read page: %w", err)
	}
	before, rest, found := strings.Cut(string(page), tableBegins)
	_, after, ended := strings.Cut(rest, tableEnds)
	if !found || !ended {
		return fmt.Errorf("page %s has no %s and %s", path, tableBegins, tableEnds)
	}
	table, err := m.table()
	if err != nil {
		return err
	}
	page = []byte(before + tableBegins + "\n" + table + tableEnds + after)
	if err := os.WriteFile(path, page, 0o600); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return m.charts(strings.TrimSuffix(path, filepath.Ext(path)))
}

// table is all figures in Markdown, those of both stores and SwarmKit's side by
// side.
func (m *measurements) table() (string, error) {
	var peer baseline
	if err := json.Unmarshal(swarmkit, &peer); err != nil {
		return "", fmt.Errorf("read SwarmKit's figures: %w", err)
	}
	theirs := map[row]figures{}
	for _, f := range peer.Figures {
		theirs[row{f.Scenario, f.Workers, f.Tasks, f.Figure, ""}] = figures{f.Least, f.Median, f.Most}
	}
	ours := map[row]map[string]figures{}
	var rows []row
	for g, rs := range grouped(m.Results) {
		for i, f := range rs[0].Figures {
			if !shown(f.Name) {
				continue
			}
			r := row{g.scenario, g.workers, g.tasks, f.Name, f.Unit}
			if ours[r] == nil {
				ours[r] = map[string]figures{}
				rows = append(rows, r)
			}
			ours[r][g.store] = spread(rs, i)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Measured %s at commit %.12s with %s, on %d cores (%s), in %s. Load of the machine before: %s (quiet: below 1), after: %s.\n\n",
		m.Began.Format("2006-01-02 15:04 MST"), m.Commit, m.Go, m.Cores, m.CPU, m.Took, m.Load[0], m.Load[1])
	fmt.Fprintf(&b, "SwarmKit: %s. %s.\n\n", peer.What, peer.Measured)
	b.WriteString("Medians [least–most]. × says how many times better than SwarmKit: embedded, Consul.\n")
	place := ""
	for _, r := range rows {
		if at := fmt.Sprintf("%s: %s workers, %s tasks", r.scenario, thousands(r.workers), thousands(r.tasks)); at != place {
			place = at
			fmt.Fprintf(&b, "\n**%s**\n\n| | embedded | Consul | SwarmKit | × |\n|---|---|---|---|---|\n", place)
		}
		their, known := theirs[row{r.scenario, r.workers, r.tasks, r.name, ""}]
		cells := []string{r.name + " (" + r.unit + ")", "", "", "", ""}
		var better []string
		for i, store := range []string{embedded, consul} {
			our, measured := ours[r][store]
			if !measured {
				continue
			}
			cells[i+1] = our.String()
			if known {
				better = append(better, times(our.median, their.median, r.unit))
			}
		}
		if known {
			cells[3], cells[4] = their.String(), strings.Join(better, ", ")
		}
		b.WriteString("| " + strings.Join(cells, " | ") + " |\n")
	}
	return b.String(), nil
}

// shown reports whether a figure is for people who do not look for one daemon.
func shown(name string) bool {
	for _, part := range []string{"99 of 100", "CPU workers", "CPU allocatord", "CPU apid", "CPU dev", "CPU dispatcherd", "CPU orchestratord", "CPU schedulerd"} {
		if strings.Contains(name, part) {
			return false
		}
	}
	return true
}

// times says how many times better ours is: more where that is better.
func times(ours, theirs float64, unit string) string {
	better := theirs / ours
	if unit == "/s" || unit == "%" {
		better = ours / theirs
	}
	if ours == 0 || theirs == 0 {
		return "–"
	}
	return number(better)
}

// String writes a median, and the range if there is one.
func (f figures) String() string {
	if f.least == f.most || f.most == 0 {
		return number(f.median)
	}
	return fmt.Sprintf("%s [%s–%s]", number(f.median), number(f.least), number(f.most))
}

// number writes three digits or so.
func number(v float64) string {
	switch {
	case v >= 100:
		return thousands(int(v + 0.5))
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	default:
		return strconv.FormatFloat(v, 'g', 2, 64)
	}
}

func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// grouped yields the runs of each measurement, by scenario and size, the stores
// beside each other.
func grouped(results []*result) func(yield func(group, []*result) bool) {
	groups := map[group][]*result{}
	var order []group
	for _, r := range results {
		g := group{r.Scenario, r.Store, r.Workers, r.Tasks}
		if groups[g] == nil {
			order = append(order, g)
		}
		groups[g] = append(groups[g], r)
	}
	first := func(g group) int {
		return slices.IndexFunc(order, func(o group) bool {
			return o.scenario == g.scenario && o.workers == g.workers && o.tasks == g.tasks
		})
	}
	sorted := slices.Clone(order)
	slices.SortStableFunc(sorted, func(a, b group) int { return first(a) - first(b) })
	return func(yield func(group, []*result) bool) {
		for _, g := range sorted {
			if !yield(g, groups[g]) {
				return
			}
		}
	}
}
