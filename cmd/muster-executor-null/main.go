// Command muster-executor-null is an executor plugin whose tasks do nothing, at
// once.
package main

import (
	"fmt"
	"os"

	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/program"
	"github.com/musterhq/muster/plugins/sdk"
)

func main() {
	executor, err := null.New(null.Config{Version: program.Version(), StateDir: program.StateDir("null")})
	if err != nil {
		fmt.Fprintf(os.Stderr, "muster-executor-null: %v\n", err)
		os.Exit(1)
	}
	sdk.Serve(executor)
}
