// Command bench measures Muster: it starts a cluster of real processes, joins
// simulated workers to it over real gRPC (the null executor, in this process),
// and times what its users wait for. See README.md beside it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options say what to measure.
type options struct {
	stores    []string
	scenarios []*scenario
	workers   int
	tasks     int
	most      int
	runs      int
	binary    string
	asJSON    bool
	keep      bool
	network   bool
	networks  bool
	profile   string
	// out and from are files of results, document is a page that shows them.
	out, from, document string
	timeout             time.Duration
}

func main() {
	o, err := parse(os.Args[1:])
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	store := fs.String("store", "both", "embedded, disk (embedded, kept in a file), consul, or both (embedded and consul)")
	names := fs.String("scenario", "deploy", "what to measure, with commas between, or all:\n"+describe())
	fs.IntVar(&o.workers, "workers", 0, "number of simulated workers (default: the scenario's)")
	fs.IntVar(&o.tasks, "tasks", 0, "number of tasks (default: the scenario's)")
	fs.IntVar(&o.most, "most", 0, "leave out sizes with more workers than that (0: none)")
	fs.IntVar(&o.runs, "runs", 3, "runs of each measurement")
	fs.StringVar(&o.binary, "binary", "bin/muster", "muster's binary (`make build`)")
	fs.BoolVar(&o.asJSON, "json", false, "print each run as a line of JSON, too")
	fs.BoolVar(&o.keep, "keep", false, "keep the directory with the daemons' logs")
	fs.BoolVar(&o.network, "network", false, "attach the tasks of services to one network, whose plugin does nothing; compare with a run without it")
	fs.BoolVar(&o.networks, "networks", false, "measure everything that networks must reach, instead of scenarios, and print it beside the limits; needs root and the repository's root as working directory")
	fs.StringVar(&o.profile, "profile", "", "directory for CPU profiles of each manager and of Consul, taken for 3 s from the start of what is measured; of a deployment also from the start of its stop")
	fs.StringVar(&o.out, "out", "", "file to keep the results in, as JSON")
	fs.StringVar(&o.from, "from", "", "file of results to report instead of measuring")
	fs.StringVar(&o.document, "document", "", "page in Markdown to put the table into, and charts beside it")
	fs.DurationVar(&o.timeout, "timeout", time.Hour, "bound of everything")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	o.stores = map[string][]string{
		"both": {embedded, consul}, embedded: {embedded}, disk: {disk}, consul: {consul},
	}[*store]
	if o.stores == nil {
		return nil, fmt.Errorf("-store: %q is none of embedded, disk, consul, both", *store)
	}
	for name := range strings.SplitSeq(*names, ",") {
		known := slices.IndexFunc(scenarios, func(s *scenario) bool { return s.name == name })
		switch {
		case name == "all":
			o.scenarios = append(o.scenarios, scenarios...)
		case known >= 0:
			o.scenarios = append(o.scenarios, scenarios[known])
		default:
			return nil, fmt.Errorf("-scenario: there is no %q; there are:\n%s", name, describe())
		}
	}
	return o, nil
}

func run(ctx context.Context, o *options) error {
	if o.networks {
		return measureNetworks(ctx, o)
	}
	m, failed, err := results(ctx, o)
	if err != nil {
		return err
	}
	if o.out != "" {
		if err := m.save(o.out); err != nil {
			return err
		}
	}
	if o.document != "" {
		if err := m.document(o.document); err != nil {
			return err
		}
	}
	return errors.Join(report(os.Stdout, m.Results), failed)
}

// results measures, or reads what was measured before. What could not be measured
// keeps nothing else from it.
func results(ctx context.Context, o *options) (m *measurements, failed, err error) {
	if o.from != "" {
		m, err := load(o.from)
		return m, nil, err
	}
	m, err = begin(ctx, o.binary)
	if err != nil {
		return nil, nil, err
	}
	for _, sc := range o.scenarios {
		for _, store := range o.stores {
			if sc.managers > 1 && store != consul {
				continue // there is one manager of each kind
			}
			if sc.sealed && store == consul {
				continue
			}
			for _, size := range sc.sizes(o) {
				if o.most > 0 && size.workers > o.most {
					continue
				}
				failed = errors.Join(failed, m.runs(ctx, o, sc, store, size))
			}
		}
	}
	return m, failed, m.end()
}

// runs measures one thing as often as is asked for.
func (m *measurements) runs(ctx context.Context, o *options, sc *scenario, store string, size size) error {
	runs := o.runs
	if size.runs > 0 {
		runs = min(runs, size.runs)
	}
	for n := range runs {
		r := &result{Scenario: sc.name, Store: store, Workers: size.workers, Tasks: size.tasks}
		fmt.Fprintf(os.Stderr, "%s on %s: %d tasks, %d workers, run %d of %d\n", sc.name, store, size.tasks, size.workers, n+1, runs)
		if err := measure(ctx, o, sc, r, n); err != nil {
			err = fmt.Errorf("%s on %s, %d tasks, %d workers: %w", sc.name, store, size.tasks, size.workers, err)
			fmt.Fprintln(os.Stderr, "bench:", err)
			return err
		}
		if o.asJSON {
			if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
				return fmt.Errorf("print result: %w", err)
			}
		}
		m.Results = append(m.Results, r)
	}
	return nil
}

// runTimeout bounds one run, with taskTimeout more for each task.
const (
	runTimeout  = 4 * time.Minute
	taskTimeout = 10 * time.Millisecond
)

// measure makes one run on a fresh cluster.
func measure(ctx context.Context, o *options, sc *scenario, r *result, run int) (err error) {
	ctx, cancel := context.WithTimeout(ctx, runTimeout+time.Duration(r.Tasks)*taskTimeout)
	defer cancel()
	s, err := startSite(ctx, o, sc, r, run)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	return sc.run(ctx, s)
}
