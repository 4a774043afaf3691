package e2e_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/test/kit/need"
)

// replicasScript is what the README's example of a cluster is wrapped in. Its ports are
// fixed, so it runs in a network of its own; what it has started ends with it.
const replicasScript = `
set -eu
ip link set lo up
%EXAMPLE%
muster cluster status
muster node ls
grep -h 'free one' ./*.log
`

// TestReadmeCluster runs the README's example of two replicas of each daemon on one
// machine, as it stands there.
func TestReadmeCluster(t *testing.T) {
	need.Program(t, "consul")
	if os.Getuid() != 0 {
		need.Met(t, errors.New("only root can make a network of its own"))
	}
	for _, program := range []string{"unshare", "ip", "bash"} {
		need.Program(t, program)
	}
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?ms)^```sh\n(consul agent.*?)^```$").FindSubmatch(text)
	if block == nil {
		t.Fatal("the README has no block of commands that begins with a Consul agent")
	}
	s := &site{dir: t.TempDir(), nodes: map[string]string{}}
	s.bin = filepath.Join(s.dir, "bin")
	if err := s.install(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c",
		strings.Replace(replicasScript, "%EXAMPLE%", string(block[1]), 1))
	work, err := os.MkdirTemp("/tmp", "readme-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(work) })
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "PATH="+s.bin+":"+os.Getenv("PATH"), "HOME="+work)
	out, err := cmd.CombinedOutput()
	if err != nil {
		logs, _ := filepath.Glob(filepath.Join(work, "*.log"))
		for _, l := range logs {
			b, _ := os.ReadFile(l)
			lines := strings.Split(strings.TrimSpace(string(b)), "\n")
			t.Logf("%s: %s", filepath.Base(l), strings.Join(lines[max(0, len(lines)-3):], "\n"))
		}
		t.Fatalf("the example fails: %v\n%s", err, out)
	}
	for _, want := range []struct {
		pattern string
		n       int
	}{
		{`(?m)hello\.\d.*Running .*Running `, 4},
		{`(?m)^.*worker[12].*Ready`, 2},
		{`free one.*--listen`, 5},
		{`free one.*--ops-listen`, 6},
		{`free one.*--rest-listen`, 1},
	} {
		if n := len(regexp.MustCompile(want.pattern).FindAll(out, -1)); n < want.n {
			t.Errorf("%d lines match %q, want %d", n, want.pattern, want.n)
		}
	}
	for _, daemon := range []string{"apid", "orchestratord", "allocatord", "schedulerd", "dispatcherd"} {
		instances := map[string]bool{}
		for _, line := range regexp.MustCompile(`(?m)^`+daemon+` +(\w+) .* Healthy `).FindAllSubmatch(out, -1) {
			instances[string(line[1])] = true
		}
		if len(instances) != 2 {
			t.Errorf("the cluster's status lists %d healthy instances of %s, want 2", len(instances), daemon)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}
