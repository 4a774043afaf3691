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
	executor, err := docker.New(docker.Config{
		Version:  program.Version(),
		StateDir: program.StateDir("docker"),
		Logger:   program.Logger(),
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "muster-executor-docker: %v\n", err)
		os.Exit(1)
	}
	sdk.Serve(executor)
}
