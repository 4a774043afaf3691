// Command muster-executor-docker is an executor plugin that runs containers
// through a Docker Engine.
package main

import (
	"fmt"
	"os"

	"github.com/musterhq/muster/plugins/docker"
	"github.com/musterhq/muster/plugins/program"
	"github.com/musterhq/muster/plugins/sdk"
)

func main() {
	executor, err := newExecutor()
	if err != nil {
		fmt.Fprintf(os.Stderr, "muster-executor-docker: %v\n", err)
		os.Exit(1)
	}
	sdk.Serve(executor)
}

func newExecutor() (*docker.Executor, error) {
	size, err := docker.PoolSize(os.Getenv(docker.PoolSizeKey))
	if err != nil {
		return nil, err
	}
	return docker.New(docker.Config{
		Version:  program.Version(),
		StateDir: program.StateDir("docker"),
		PoolSize: size,
		Logger:   program.Logger(),
	})
}
