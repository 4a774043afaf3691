package e2e_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/wait"
)

// life is the whole of what a cluster does for its users, on one site.
type life struct {
	*site
	// whole is the test that the steps are part of; what is begun in one step
	// and continues in others ends with it.
	whole *testing.T
	// events and follower are commands that watch all the while.
	events, follower *background
}

// step is one of the steps of a life. Each rests on those before it.
type step struct {
	name string
	run  func(*life, *testing.T)
}

// lifeSteps are all steps; those that need workers in processes of their own are
// left out where there are none.
func lifeSteps(ownWorkers bool) []step {
	steps := []step{
		{"look at the cluster", (*life).look},
		{"deploy processes by the command line", (*life).deployProcesses},
		{"deploy containers by REST", (*life).deployContainers},
		{"deploy a global service by gRPC", (*life).deployGlobal},
		{"play the session by curl", (*life).session},
		{"scale from 3 to 10 to 2", (*life).scale},
		{"read logs", (*life).logs},
		{"kill plugins", (*life).killPlugins},
		{"update", (*life).update},
		{"drain a node and activate it", (*life).drain},
	}
	if ownWorkers {
		steps = append(steps,
			step{"kill a worker", (*life).killWorker},
			step{"restart workers in order", (*life).restartWorkers},
			step{"kill a worker that is back at once", (*life).killWorkerBriefly},
		)
	}
	return append(steps,
		step{"remove everything", (*life).remove},
		step{"see what the events told", (*life).readEvents},
		step{"stop the cluster", (*life).stop},
	)
}

// live runs the steps until one has failed.
func live(t *testing.T, cfg siteConfig) {
	t.Parallel()
	need.Answer(t, "docker", "version")
	s := startSite(t, cfg)
	s.makeImage(t)
	l := &life{site: s, whole: t}
	l.events = s.begin(t, "events", "events", "--format", "json")
	wait.Within(t, runTimeout, "events are watched", func(ctx context.Context) error {
		lines, err := l.events.lines()
		if err == nil && len(lines) == 0 {
			err = fmt.Errorf("nothing is said")
		}
		return err
	})
	for i, step := range lifeSteps(len(cfg.workers) > 0) {
		if !t.Run(fmt.Sprintf("%02d %s", i+1, step.name), func(t *testing.T) { step.run(l, t) }) {
			return
		}
	}
}

// soon lets apid sweep what nothing refers to any more while the test waits.
var soon = []string{"--sweep-interval=200ms", "--spec-grace=1s"}

func TestLifeOverConsul(t *testing.T) {
	need.Program(t, "consul")
	live(t, siteConfig{workers: []string{"alpha", "beta", "gamma"}, args: map[string][]string{"apid": soon}})
}

func TestLifeInDev(t *testing.T) {
	live(t, siteConfig{embedded: true, devWorkers: 3})
}
