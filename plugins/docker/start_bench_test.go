//go:build linux

package docker_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"

	"github.com/musterhq/muster/plugins/docker"
	"github.com/musterhq/muster/plugins/sdk"
)

// BenchmarkStart measures Prepare, SetNetwork and Start of one container after the other,
// side by side: on Docker's bridge, in the namespace of a pause container that is made for
// it, and in that of one from the pool.
func BenchmarkStart(b *testing.B) {
	c := engine(b)
	for _, test := range []struct {
		name      string
		networked bool
		pool      int
	}{{"bridge", false, 0}, {"cold", true, 0}, {"warm", true, 2}} {
		b.Run(test.name, func(b *testing.B) {
			e, err := docker.New(docker.Config{StateDir: b.TempDir(), PoolSize: test.pool})
			if err != nil {
				b.Fatal(err)
			}
			node := fmt.Sprintf("bench%d", time.Now().UnixNano())
			task := &sdk.Task{NodeId: node, Networked: test.networked, Spec: taskSpec(shell("sleep 1000"))}
			start := func(i int) {
				task.Id = fmt.Sprintf("%s-%d", node, i)
				task.Name = "web.1." + task.Id
				handle, err := e.Prepare(b.Context(), task, nil)
				if err == nil && test.networked {
					err = e.SetNetwork(b.Context(), task, handle, &sdk.Network{Nameservers: []string{"169.254.1.1"}})
				}
				if err == nil {
					_, err = e.Start(b.Context(), task, handle)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			settled := func() {
				if err := e.Remove(context.Background(), sdk.Ref{TaskID: task.Id}); err != nil {
					b.Fatal(err)
				}
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				for deadline := time.Now().Add(time.Minute); ; <-tick.C {
					running, err := c.ContainerList(b.Context(), container.ListOptions{Filters: filters.NewArgs(filters.Arg("label", "com.musterhq.node.id="+node))})
					if err != nil || time.Now().After(deadline) {
						b.Fatalf("the pool is not filled: %d, %v", len(running), err)
					}
					if len(running) == test.pool {
						return
					}
				}
			}
			start(0)
			settled()
			i := 0
			for b.Loop() {
				i++
				start(i)
				b.StopTimer()
				settled()
				b.StartTimer()
			}
			if err := e.Close(); err != nil {
				b.Error(err)
			}
		})
	}
}
