//go:build linux

// Command muster-network-overlay is a network plugin that connects tasks over VXLAN.
package main

import (
	"fmt"
	"os"

	"go.uber.org/zap"

	"github.com/musterhq/muster/plugins/network/overlay"
	"github.com/musterhq/muster/plugins/program"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

func main() {
	log := program.Logger()
	overlay.ServeNames(os.Args, log)
	overlay.ServeTunnel(os.Args)
	if err := serve(log); err != nil {
		fmt.Fprintf(os.Stderr, "muster-network-overlay: %v\n", err)
		os.Exit(1)
	}
}

func serve(log *zap.Logger) error {
	if err := networksdk.EnterMachineNetwork(); err != nil {
		return err
	}
	encryption, err := overlay.ReadEncryption(os.LookupEnv)
	if err != nil {
		return err
	}
	plugin, err := overlay.New(overlay.Config{
		Version:    program.Version(),
		StateDir:   program.StateDir("network-overlay"),
		Resolvers:  networksdk.MachineFile("/etc/resolv.conf"),
		Machine:    networksdk.Machine(),
		Encryption: encryption,
		Logger:     log,
	})
	if err != nil {
		return err
	}
	networksdk.Serve(plugin)
	return nil
}
