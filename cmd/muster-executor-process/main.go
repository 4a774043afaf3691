//go:build linux

// Command muster-executor-process is an executor plugin that runs commands as
// plain processes of its node.
package main

import (
	"fmt"
	"os"

	"github.com/musterhq/muster/plugins/process"
	"github.com/musterhq/muster/plugins/program"
	"github.com/musterhq/muster/plugins/sdk"
)

func main() {
	process.Supervise(os.Args)
	executor, err := process.New(process.Config{
		Version:  program.Version(),
		StateDir: program.StateDir("process"),
		Logger:   program.Logger(),
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "muster-executor-process: %v\n", err)
		os.Exit(1)
	}
	sdk.Serve(executor)
}
