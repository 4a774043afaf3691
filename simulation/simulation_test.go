package simulation_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/simulation"
)

var (
	seed    = flag.Uint64("seed", 0, "run this seed only")
	journal = flag.String("journal", "", "write all events to this file")
)

// fixed are the seeds that every test run takes: some that are quick, a large cluster,
// and those that have found something.
//
//	16, 44, 53  a replica of apid that lagged accepted a change and did not make it
//	44          a task on a paused node was prepared, and never started
//	44          a scheduler that heard late of a drained node assigned to it forever
//	44          a worker without memory took a task for stopped that it had not begun
//	58          258 workers
//	160         tasks that could not be prepared kept the port from those that were to
//	            replace them, where the update order is START_FIRST
//	67          (a call without an answer was applied after one that changed nothing)
//	232         an update waited forever for a task on a paused node
var fixed = []uint64{1, 2, 3, 4, 5, 7, 9, 10, 11, 16, 44, 53, 58, 67, 160, 232}

// races are those of them that are run with the race detector too.
var races = []uint64{1, 3, 4, 9, 10}

func TestSimulate(t *testing.T) {
	if *seed != 0 {
		simulate(t, *seed, simulation.Mutation{}).judge(t)
		return
	}
	seeds, fresh := fixed, 4
	if raced {
		seeds, fresh = races, 1
	}
	for range fresh {
		seeds = append(seeds[:len(seeds):len(seeds)], 1000+rand.Uint64N(1e9))
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			simulate(t, seed, simulation.Mutation{}).judge(t)
		})
	}
}

// outcome is what became of a seed.
type outcome struct {
	*simulation.Report
	took time.Duration
}

func simulate(t *testing.T, seed uint64, mutation simulation.Mutation) outcome {
	opt := simulation.Options{Mutation: mutation}
	if *journal != "" {
		f, err := os.Create(*journal)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		opt.Journal = f
	}
	began := time.Now()
	var report *simulation.Report
	synctest.Test(t, func(t *testing.T) {
		var err error
		if report, err = simulation.Run(simulation.NewScript(seed), opt); err != nil {
			t.Fatal(err)
		}
	})
	return outcome{report, time.Since(began)}
}

// judge wants nothing to have been wrong.
func (o outcome) judge(t *testing.T) {
	t.Logf("%v, in %v", o.Report, o.took.Round(time.Millisecond))
	if v := o.Violations(); len(v) > 0 {
		t.Logf("the last events:\n%s", o.Tail())
		for _, text := range v {
			t.Error(text)
		}
		t.Errorf("to run it again: make simulate SEEDS=1 FIRST=%d", o.Script.Seed)
	}
}
