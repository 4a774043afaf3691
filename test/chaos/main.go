// Command chaos runs a cluster of real processes under load for a chosen time,
// over three real Consul servers, each machine of it a network namespace, and
// kills, stops, slows and cuts off parts of it at random. It checks all the while,
// and at the end, that nothing is lost, doubled or left behind, and reports what
// it did and found. It needs root, for the namespaces.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/network"
	"github.com/musterhq/muster/test/kit/rig"
)

func main() {
	var o options
	flag.DurationVar(&o.duration, "duration", time.Minute, "how long faults are injected")
	flag.Uint64Var(&o.seed, "seed", 0, "what the faults and the load are chosen by (default: another one each time)")
	flag.IntVar(&o.replicas, "replicas", 3, "replicas of each manager, at most 3")
	flag.IntVar(&o.workers, "workers", 4, "workers that faults befall; one more is left alone, and its tasks must not notice anything")
	flag.IntVar(&o.clients, "clients", 4, "clients that create, scale, update and remove services")
	flag.DurationVar(&o.away, "consul-away", 0, "how long Consul is gone as a whole, once (default: half of the duration, but for short runs, and at most 5m)")
	flag.StringVar(&o.json, "json", "", "file for the report as JSON")
	flag.StringVar(&o.only, "only", "", "inject only faults whose names begin so")
	flag.DurationVar(&o.certificates, "certificates", 0, "inject no faults: have certificates that last for so long renewed under load")
	flag.Parse()
	if o.seed == 0 {
		o.seed = rand.Uint64()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	clean, err := run(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
	}
	if err != nil || !clean {
		stop()
		os.Exit(1)
	}
}

// options are what the command is told.
type options struct {
	duration, away             time.Duration
	seed                       uint64
	replicas, workers, clients int
	json, only                 string
	certificates               time.Duration
}

// longRun is the length of a run from which on Consul is gone for long by default.
const longRun = 10 * time.Minute

func (o options) consulAway() time.Duration {
	if o.away == 0 && o.duration >= longRun {
		return min(o.duration/2, 5*time.Minute)
	}
	return o.away
}

// run does it all, and reports whether nothing was violated.
func run(ctx context.Context, o options) (clean bool, err error) {
	if err := network.Missing(); err != nil && o.certificates == 0 {
		return false, err
	}
	dir, err := os.MkdirTemp("", "muster-chaos-")
	if err != nil {
		return false, fmt.Errorf("make a directory: %w", err)
	}
	defer func() {
		if clean && err == nil {
			err = os.RemoveAll(dir)
		} else {
			fmt.Fprintln(os.Stderr, "chaos: logs and data are kept in", dir)
		}
	}()
	if o.certificates > 0 {
		return runCertificates(ctx, o, dir)
	}
	report := newReport(o)
	fmt.Printf("seed %d, %v, %d replicas of each manager, %d workers\n", o.seed, o.duration, o.replicas, o.workers+1)
	s, err := newSite(ctx, o, dir)
	if err != nil {
		return false, err
	}
	err = s.work(ctx, o, report)
	err = errors.Join(err, s.close(report))
	return report.finish(o.json) && err == nil, err
}

// site is the cluster and the network that it is on.
type site struct {
	*rig.Rig
	net *network.Net
	// managers are the hosts of managers and Consul, workers those of workers, by
	// name.
	managers []*network.Host
	workers  map[string]*network.Host
}

// quiet is the worker that no fault befalls.
const quiet = "quiet"

const consulServers = 3

func newSite(ctx context.Context, o options, dir string) (_ *site, err error) {
	built := filepath.Join(dir, "built")
	if err := rig.Build(ctx, ".", built); err != nil {
		return nil, err
	}
	s := &site{workers: map[string]*network.Host{}}
	if s.net, err = network.New(ctx, consulServers+o.workers+1); err != nil {
		return nil, err
	}
	hosts := s.net.Hosts()
	s.managers = hosts[:consulServers]
	names := []string{quiet}
	for n := range o.workers {
		names = append(names, "worker-"+strconv.Itoa(n+1))
	}
	ids := map[string]string{}
	for i, name := range names {
		s.workers[name] = hosts[consulServers+i]
		// Other clusters may be on this machine as well.
		ids[name] = fmt.Sprintf("node-%s-%d", name, os.Getpid())
	}
	s.Rig, err = rig.Start(ctx, rig.Config{
		Config: cluster.Config{
			Dir: dir, Replicas: min(o.replicas, consulServers), ConsulServers: consulServers, Net: s.net, WorkerHosts: s.workers,
		},
		Built: built, NodeIDs: ids,
	})
	if err != nil {
		return nil, errors.Join(err, s.net.Close())
	}
	return s, nil
}

// settleTimeout is how long the cluster may take to be what it should be when no
// more faults come. A worker whose tasks failed waits 5 s before it tries again,
// and one that was cut off may be given 30 s to come back.
const settleTimeout = 90 * time.Second

// work injects faults under load for a while, and then looks what has become of
// the cluster.
func (s *site) work(ctx context.Context, o options, report *report) error {
	if err := await(ctx, settleTimeout, s.Ready); err != nil {
		return fmt.Errorf("nodes do not join: %w", err)
	}
	watch, err := newWatch(ctx, s, report)
	if err != nil {
		return err
	}
	began := time.Now()
	faulty, end := context.WithTimeout(ctx, o.duration)
	defer end()
	clients := make([]*client, o.clients)
	var load, faults, looking sync.WaitGroup
	for i := range clients {
		clients[i] = newClient(s, report, i, rand.New(rand.NewPCG(o.seed, uint64(i))))
		load.Go(func() { clients[i].run(faulty) })
	}
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	looking.Go(func() { watch.run(watching) })
	faults.Go(func() { newMaker(s, report, o).run(faulty) })
	faults.Wait()
	load.Wait()
	fmt.Printf("%v: faults are over\n", time.Since(began).Round(time.Second))

	calm := time.Now()
	err = await(ctx, settleTimeout, func(ctx context.Context) error {
		for _, c := range clients {
			if err := c.converged(ctx); err != nil {
				return err
			}
		}
		return errors.Join(s.Ready(ctx), s.Truthful(ctx), watch.look(ctx))
	})
	report.Settled = time.Since(calm).Seconds()
	if err != nil {
		report.violated("the cluster is not what it should be %v after the last fault: %v", settleTimeout, err)
	}
	stopWatching()
	looking.Wait()
	if err := s.RemoveAll(ctx); err != nil {
		return fmt.Errorf("remove all services: %w", err)
	}
	if err := await(ctx, settleTimeout, s.Empty); err != nil {
		report.violated("something is left of tasks after all services were removed: %v", err)
	}
	return nil
}

// close ends everything.
func (s *site) close(report *report) error {
	// What Close finds left behind it kills, and says so.
	if err := s.Close(); err != nil {
		report.violated("the end: %v", err)
	}
	return s.net.Close()
}

// await looks again and again until look returns no error, and returns the last
// one when the time is over.
func await(ctx context.Context, within time.Duration, look func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := look(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return last
		}
	}
}
