package e2e_test

import (
	"fmt"
	"os"
)

// pluginRole is the first argument that makes the test program a plugin.
const pluginRole = "be-a-plugin"

// bePlugin misbehaves in one way.
func bePlugin(how string) {
	fmt.Fprintln(os.Stderr, how)
	os.Exit(1)
}
