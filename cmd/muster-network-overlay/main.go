//go:build linux

// Command muster-network-overlay is a network plugin that connects tasks over VXLAN.
package main

import (
	"fmt"
	"os"

	"github.com/musterhq/muster/plugins/network/overlay"
	"github.com/musterhq/muster/plugins/program"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

func main() {
	log := program.Logger()
	overlay.ServeNames(os.Args, log)
	plugin, err := overlay.New(overlay.Config{
		Version:  program.Version(),
		StateDir: program.StateDir("network-overlay"),
		Logger:   log,
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "muster-network-overlay: %v\n", err)
		os.Exit(1)
	}
	networksdk.Serve(plugin)
}
