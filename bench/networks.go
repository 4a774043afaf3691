package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// goal is a figure of networks with the limit that it must keep.
type goal struct {
	name, unit string
	limit      float64
	// atLeast says that the figure must not be below the limit; it must not be above it
	// otherwise.
	atLeast bool
	values  []float64
}

func (g *goal) kept() string {
	median := sorted(g.values)[len(g.values)/2]
	if g.atLeast == (median >= g.limit) || median == g.limit {
		return "yes"
	}
	return "NO"
}

func sorted(values []float64) []float64 { return slices.Sorted(slices.Values(values)) }

// goals are the figures of networks, in the order in which they were measured first.
type goals []*goal

func (gs *goals) most(name, unit string, limit, value float64) {
	gs.add(name, unit, limit, false, value)
}

func (gs *goals) least(name, unit string, limit, value float64) {
	gs.add(name, unit, limit, true, value)
}

func (gs *goals) add(name, unit string, limit float64, atLeast bool, value float64) {
	for _, g := range *gs {
		if g.name == name {
			g.values = append(g.values, value)
			return
		}
	}
	*gs = append(*gs, &goal{name: name, unit: unit, limit: limit, atLeast: atLeast, values: []float64{value}})
}

// report prints all goals in one table.
func (gs goals) report(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "FIGURE\tLIMIT\tMEDIAN\tLEAST\tMOST\tUNIT\tRUNS\tKEPT")
	for _, g := range gs {
		values, bound := sorted(g.values), "≤ "
		if g.atLeast {
			bound = "≥ "
		}
		_, _ = fmt.Fprintf(t, "%s\t%s%s\t%.4g\t%.4g\t%.4g\t%s\t%d\t%s\n", g.name, bound, strconv.FormatFloat(g.limit, 'f', -1, 64),
			values[len(values)/2], values[0], values[len(values)-1], g.unit, len(values), g.kept())
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print report: %w", err)
	}
	return nil
}

// measureNetworks measures everything that networks must reach, and prints it beside the
// limits. It runs benchmarks and a test of this repository, whose root must be the working
// directory.
func measureNetworks(ctx context.Context, o *options) error {
	before, err := loadAverage()
	if err != nil {
		return err
	}
	var gs goals
	for n := range o.runs {
		fmt.Fprintf(os.Stderr, "networks: run %d of %d\n", n+1, o.runs)
		for _, step := range []func(context.Context, *options, int, *goals) error{dataPathFigures, nameFigures, reachFigures, rateFigures, requestFigures} {
			if err := step(ctx, o, n, &gs); err != nil {
				return err
			}
		}
	}
	after, err := loadAverage()
	if err != nil {
		return err
	}
	fmt.Printf("load of the machine before: %s (quiet: below 1), after: %s\n", before, after)
	return gs.report(os.Stdout)
}

// dataPathFigures measures the overlay plugin in the kernel.
func dataPathFigures(ctx context.Context, _ *options, _ int, gs *goals) error {
	const dir = "./plugins/network/overlay"
	through, err := benchmarks(ctx, dir, "^BenchmarkThroughput$/^(plain-vxlan|task-to-task|virtual-address)$", "3s")
	if err != nil {
		return err
	}
	plain := through["Throughput/plain-vxlan"]["MB/s"]
	if plain == 0 {
		return fmt.Errorf("benchmark of %s reports no throughput", dir)
	}
	gs.least("TCP between machines, task to task, of plain VXLAN", "%", 95, 100*through["Throughput/task-to-task"]["MB/s"]/plain)
	gs.least("TCP between machines, virtual address, of plain VXLAN", "%", 95, 100*through["Throughput/virtual-address"]["MB/s"]/plain)
	cold, err := benchmarks(ctx, dir, "^BenchmarkColdServices$", "3x")
	if err != nil {
		return err
	}
	gs.most("1,000 services of 10 backends programmed, cold", "s", 2, cold["ColdServices"]["ns/op"]/1e9)
	one, err := benchmarks(ctx, dir, "^BenchmarkOneBackend$", "300x")
	if err != nil {
		return err
	}
	gs.most("one backend of them changed, median", "ms", 10, one["OneBackend"]["ms/change-p50"])
	gs.most("one backend of them changed, 99 of 100", "ms", 10, one["OneBackend"]["ms/change-p99"])
	return nil
}

// nameFigures measures the name server. Clients share the core that is counted.
func nameFigures(ctx context.Context, _ *options, _ int, gs *goals) error {
	served, err := benchmarks(ctx, "./plugins/network/dns", "^BenchmarkServe$", "3s")
	if err != nil {
		return err
	}
	gs.least("DNS answers a second of one core, with its clients", "/s", 20000, served["Serve"]["answers/cpu-s"])
	return nil
}

// reachFigures measures when all nodes know a new task.
func reachFigures(ctx context.Context, o *options, run int, gs *goals) error {
	r, err := measureOne(ctx, o, "reach", embedded, size{workers: 100, tasks: 1000}, false, run)
	if err != nil {
		return err
	}
	for _, f := range r.Figures {
		if name, _, found := strings.Cut(f.Name, " (limit"); found || strings.HasSuffix(name, "median") {
			gs.most(name, f.Unit, 100, f.Value)
		}
	}
	return nil
}

// rateFigures compares deployments with a network and without, one after the other.
func rateFigures(ctx context.Context, o *options, run int, gs *goals) error {
	for _, store := range o.stores {
		took := map[bool]float64{}
		for _, network := range []bool{false, true} {
			r, err := measureOne(ctx, o, "deploy", store, size{workers: 100, tasks: 10000}, network, run)
			if err != nil {
				return err
			}
			took[network] = r.value("all running")
		}
		gs.least("10,000 tasks on 100 workers, rate with a network to without, "+store, "", 0.8, took[false]/took[true])
	}
	return nil
}

// requestFigures replaces tasks under load. The test fails if a request does.
func requestFigures(ctx context.Context, _ *options, _ int, gs *goals) error {
	failed := 0.0
	if out, err := goTest(ctx, "./test/networks", "-run", "^TestNoRequestFailsWhileTasksAreReplaced$"); err != nil {
		fmt.Fprintf(os.Stderr, "%s\n", out)
		failed = 1
	}
	gs.most("rolling updates and scaling in which a request failed", "", 0, failed)
	return nil
}

// measureOne makes one run of a scenario.
func measureOne(ctx context.Context, o *options, name, store string, s size, network bool, run int) (*result, error) {
	with := *o
	with.network = network
	sc := scenarios[slices.IndexFunc(scenarios, func(s *scenario) bool { return s.name == name })]
	r := &result{Scenario: name, Store: store, Workers: s.workers, Tasks: s.tasks}
	if err := measure(ctx, &with, sc, r, run); err != nil {
		return nil, fmt.Errorf("%s on %s: %w", name, store, err)
	}
	return r, nil
}

// value returns a figure, 0 if there is none of that name.
func (r *result) value(name string) float64 {
	for _, f := range r.Figures {
		if f.Name == name {
			return f.Value
		}
	}
	return 0
}

// benchmarks runs benchmarks of a package and returns what they report, by benchmark and
// unit.
func benchmarks(ctx context.Context, dir, pattern, times string) (map[string]map[string]float64, error) {
	out, err := goTest(ctx, dir, "-run", "^$", "-bench", pattern, "-benchtime", times)
	if err != nil {
		return nil, fmt.Errorf("benchmarks %s of %s: %w\n%s", pattern, dir, err, out)
	}
	found := map[string]map[string]float64{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		name, ok := strings.CutPrefix(line, "Benchmark")
		if !ok || len(fields) < 4 {
			continue
		}
		name = strings.Fields(name)[0]
		if i := strings.LastIndex(name, "-"); i > 0 {
			name = name[:i] // the number of cores
		}
		found[name] = map[string]float64{}
		for i := 2; i+1 < len(fields); i += 2 {
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
				found[name][fields[i+1]] = v
			}
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("benchmarks %s of %s have not run: they need root\n%s", pattern, dir, out)
	}
	return found, nil
}

// goTest runs the go command's tests. With CI set, tests fail that cannot run here.
func goTest(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", append(append([]string{"test", "-count=1"}, args...), dir)...)
	cmd.Env = append(os.Environ(), "CI=1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.Bytes(), err
}
