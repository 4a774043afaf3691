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
	plugin, err := overlay.New(overlay.Config{
		Version:  program.Version(),
		StateDir: program.StateDir("network-overlay"),
		Logger:   program.Logger(),
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "muster-network-overlay: %v\n", err)
		os.Exit(1)
	}
	networksdk.Serve(plugin)
}
