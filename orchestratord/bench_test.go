package orchestratord_test

import (
	"fmt"
	"testing"
	"time"

	"go.uber.org/zap"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

const many = 10_000

// BenchmarkCreate is from the service's record to the last of 10,000 task
// records, through the embedded store.
func BenchmarkCreate(b *testing.B) {
	c := newCluster(b, zap.NewNop())
	defer c.close()
	c.orchestrator()
	for i := 0; b.Loop(); i++ {
		c.service(fmt.Sprintf("web%d", i), replicated(many), null(1))
		c.until(b, fmt.Sprintf("web%d", i), many)
	}
}

// BenchmarkUpdate replaces all 10,000 tasks of a service of which none has a
// node yet.
func BenchmarkUpdate(b *testing.B) {
	c := newCluster(b, zap.NewNop())
	defer c.close()
	c.orchestrator()
	c.service("web", replicated(many), null(0))
	c.until(b, "web", many)
	for i := uint64(1); b.Loop(); i++ {
		c.service("web", replicated(many), null(i))
		e, _ := c.tables.Services.Get(c.store.Snapshot(), "web")
		c.untilAll(b, "web", func(t *recordv1.Task) bool {
			return t.DesiredState > musterv1.TaskState_COMPLETE || t.SpecVersion == e.Value.SpecVersion
		})
	}
}

// BenchmarkStatuses is what 10,000 tasks that come up cost: each is assigned
// and reported RUNNING, one node of 100 after another.
func BenchmarkStatuses(b *testing.B) {
	c := newCluster(b, zap.NewNop())
	defer c.close()
	for i := range many / 100 {
		c.up(fmt.Sprintf("n%d", i))
	}
	c.orchestrator()
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		id := fmt.Sprintf("web%d", i)
		c.service(id, replicated(many), null(1))
		c.until(b, id, many)
		tasks := c.tasks(id)
		b.StartTimer()
		for n := range many / 100 {
			part, node := tasks[n*100:(n+1)*100], fmt.Sprintf("n%d", n)
			c.update(func(tx *store.Tx) error {
				for _, t := range part {
					key := state.NodeTaskKey(node, id, t.ID)
					c.tables.Assignments.Put(tx, key, &recordv1.Assignment{Slot: t.Record.Slot})
					c.tables.Statuses.Put(tx, key, &recordv1.Status{State: musterv1.TaskState_RUNNING, At: time.Now().UnixMilli()})
				}
				return nil
			})
		}
	}
}

// until waits until a service has n tasks.
func (c *cluster) until(b *testing.B, service string, n int) {
	var seen *store.Snapshot
	for {
		sn, err := c.store.Wait(b.Context(), seen)
		if err != nil {
			b.Fatal(err)
		}
		have := 0
		for range c.tables.Tasks.Scan(sn, service+"/") {
			have++
		}
		if have >= n {
			return
		}
		seen = sn
	}
}

// untilAll waits until a condition holds for all of a service's tasks.
func (c *cluster) untilAll(b *testing.B, service string, ok func(*recordv1.Task) bool) {
	var seen *store.Snapshot
	for {
		sn, err := c.store.Wait(b.Context(), seen)
		if err != nil {
			b.Fatal(err)
		}
		all := true
		for e := range c.tables.Tasks.Scan(sn, service+"/") {
			all = all && ok(e.Value)
		}
		if all {
			return
		}
		seen = sn
	}
}
