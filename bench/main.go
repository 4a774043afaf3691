// Command bench measures Muster: it starts a cluster of real processes, joins
// simulated workers to it over real gRPC (the null executor, in this process),
// and times the life of one service. See README.md beside it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/musterhq/muster/internal/testcluster"
)

// options say what to measure.
type options struct {
	store   string
	workers int
	tasks   int
	runs    int
	binary  string
	asJSON  bool
	keep    bool
	profile string
	timeout time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.store, "store", "both", "embedded, disk (embedded, kept in a file), consul, or both (embedded and consul)")
	flag.IntVar(&o.workers, "workers", 100, "number of simulated workers")
	flag.IntVar(&o.tasks, "tasks", 0, "number of tasks; 0 measures 1, 1,000 and 10,000")
	flag.IntVar(&o.runs, "runs", 3, "runs of each measurement")
	flag.StringVar(&o.binary, "binary", "bin/muster", "muster's binary (`make build`)")
	flag.BoolVar(&o.asJSON, "json", false, "print each run as a line of JSON, too")
	flag.BoolVar(&o.keep, "keep", false, "keep the directory with the daemons' logs")
	flag.StringVar(&o.profile, "profile", "", "directory for a CPU profile of each manager, taken for 3 s from the create call on")
	flag.DurationVar(&o.timeout, "timeout", 10*time.Minute, "bound of everything")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	stores := map[string][]string{
		"both": {"embedded", "consul"}, "embedded": {"embedded"}, "disk": {"disk"}, "consul": {"consul"},
	}[o.store]
	if stores == nil {
		return fmt.Errorf("-store: %q is none of embedded, disk, consul, both", o.store)
	}
	sizes := []int{1, 1000, 10000}
	if o.tasks > 0 {
		sizes = []int{o.tasks}
	}
	var all []*result
	for _, store := range stores {
		for _, tasks := range sizes {
			for n := range o.runs {
				fmt.Fprintf(os.Stderr, "%s: %d tasks on %d workers, run %d of %d\n", store, tasks, o.workers, n+1, o.runs)
				r, err := measure(ctx, o, store, tasks)
				if err != nil {
					return fmt.Errorf("%s, %d tasks: %w", store, tasks, err)
				}
				if o.asJSON {
					if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
						return fmt.Errorf("print result: %w", err)
					}
				}
				all = append(all, r)
			}
		}
	}
	return report(os.Stdout, all)
}

// measure times one run on a fresh cluster.
func measure(ctx context.Context, o options, store string, tasks int) (r *result, err error) {
	dir, err := os.MkdirTemp("", "muster-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	if o.keep {
		fmt.Fprintln(os.Stderr, "logs are in", dir)
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	binary, err := filepath.Abs(o.binary)
	if err != nil {
		return nil, fmt.Errorf("-binary: %w", err)
	}
	cluster, err := testcluster.Start(ctx, testcluster.Config{
		Binary: binary, Dir: dir, Embedded: store != "consul", OnDisk: store == "disk",
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()
	fleet, err := startFleet(ctx, cluster.Dispatcher, o.workers)
	if err != nil {
		return nil, err
	}
	// The workers end before the managers do.
	defer fleet.stop()
	if o.profile != "" {
		p := profileManagers(ctx, cluster, o.profile)
		defer func() { err = errors.Join(err, p.wait()) }()
	}
	return deploy(ctx, cluster, store, o.workers, tasks)
}
