//go:build linux

// Command muster-network-cni is a network plugin that connects tasks through the CNI
// configurations of its node.
package main

import (
	"fmt"
	"os"

	"github.com/musterhq/muster/plugins/network/cni"
	"github.com/musterhq/muster/plugins/program"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

func main() {
	if err := networksdk.EnterMachineNetwork(); err != nil {
		fmt.Fprintf(os.Stderr, "muster-network-cni: %v\n", err)
		os.Exit(1)
	}
	plugin, err := cni.New(cni.Config{
		Version:  program.Version(),
		StateDir: program.StateDir("network-cni"),
		Logger:   program.Logger(),
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "muster-network-cni: %v\n", err)
		os.Exit(1)
	}
	networksdk.Serve(plugin)
}
