package security_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// TestPluginBelowDirectoryThatOthersCanChangeIsNotStarted puts a plugin where others can
// replace the directory above its own. Whatever lies there would run with the worker's
// rights.
func TestPluginBelowDirectoryThatOthersCanChangeIsNotStarted(t *testing.T) {
	c := start(t)
	open := filepath.Join(c.dir, "open")
	plugins, marker, sums, token := filepath.Join(open, "lib/plugins"), filepath.Join(c.dir, "hijacked"), filepath.Join(c.dir, "checksums"), filepath.Join(c.dir, "worker.token")
	program := []byte("#!/bin/sh\ntouch " + marker + "\n")
	err := errors.Join(os.MkdirAll(plugins, 0o755), os.Chmod(open, 0o777),
		os.WriteFile(filepath.Join(plugins, "muster-executor-victim"), program, 0o755),
		os.WriteFile(sums, fmt.Appendf(nil, "%x  muster-executor-victim\n", sha256.Sum256(program)), 0o600), os.Chmod(sums, 0o666),
		os.Chmod(token, 0o666))
	if err != nil {
		t.Fatal(err)
	}
	c.daemon("workerd", "--join", c.api, "--join-token-file", token, "--dispatcher", c.dispatch, "--data-dir", filepath.Join(c.dir, "data"),
		"--plugin-dir", plugins, "--plugin-checksum-file", sums, "--ops-listen", freeAddresses(t, 1)[0])
	control := musterv1.NewControlServiceClient(c.dial(c.api, nil))
	c.eventually("the node says why its plugin does not run", func() bool {
		nodes, err := control.ListNodes(c.with(c.admin), &musterv1.ListNodesRequest{})
		if err != nil {
			return false
		}
		for _, n := range nodes.GetNodes() {
			for _, e := range n.GetDescription().GetExecutors() {
				if _, err := os.Stat(marker); err == nil {
					t.Fatal("the plugin was started")
				}
				if strings.Contains(e.Message, "is refused: "+open+" ") && strings.Contains(e.Message, "chmod go-w") {
					return true
				}
			}
		}
		return false
	})
	for _, setting := range []string{"--join-token-file", "--plugin-checksum-file"} {
		c.logged("workerd", `"other users can change a file that is trusted"`, `"setting":"`+setting+`"`, "chmod go-w")
	}
}
